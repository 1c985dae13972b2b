#!/usr/bin/env python3
"""Times OpenVINO GenAI's continuous batching (C++, paged attention) on a random plain transformer of our baseline's geometry.

    python3 -m venv V
    V/bin/pip install "optimum-intel[openvino]==2.2.0" openvino-genai==2026.4.1.0 "transformers<5"       # 6 GB
    V/bin/python bench/peers/openvino_genai_peer.py --work DIR [--size small] [--batches 1,8] [--precision bf16]

The model is made in DIR once. Prints one JSON object: decode and prefill tokens per second of one round. It calls the pipeline's
step() itself, so that only steps are timed: no server, no network.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import qwen3
from geometry import PAPER_SIZES
from qwen3 import END_TOKEN


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="folder for the model")
    parser.add_argument("--size", choices=PAPER_SIZES, default="small")
    parser.add_argument("--batches", default="1,8,16,32", help="sequences that are decoded at a time")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of their prompts")
    parser.add_argument("--new", type=int, default=96, help="tokens that each gets")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt whose prefill is timed")
    parser.add_argument("--precision", choices=["bf16", "default"], default="bf16")
    return parser.parse_args()


def make_model(size, plain, exported):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    qwen3.save(size, plain)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)} | {"<|end|>": END_TOKEN}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|end|>", eos_token="<|end|>",
                            pad_token="<|end|>").save_pretrained(plain)
    command = [pathlib.Path(sys.executable).parent / "optimum-cli", "export", "openvino", "--model", plain,
               "--task", "text-generation-with-past", "--weight-format", "fp16", exported]
    done = subprocess.run(list(map(str, command)), env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        sys.exit(f"optimum-cli failed:\n{done.stdout}{done.stderr}")


class Pipeline:
    def __init__(self, folder, precision):
        import openvino_genai as genai

        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = 2048
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_PRECISION_HINT": "bf16", "KV_CACHE_PRECISION": "bf16"} if precision == "bf16" else {}
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        self._config = genai.GenerationConfig()
        self._config.ignore_eos, self._config.do_sample = True, False
        self._requests = 0

    def seconds(self, batch, prompt, new):
        """Of the step that computes the prompts, and of a decode step, the mean of all."""
        import numpy
        import openvino

        self._config.max_new_tokens = new
        handles = []  # a request ends when its handle goes
        for _ in range(batch):
            ids = numpy.random.randint(0, END_TOKEN, (1, prompt)).astype(numpy.int64)
            handles.append(self._pipeline.add_request(self._requests, openvino.Tensor(ids), self._config))
            self._requests += 1
        begin = time.perf_counter()
        self._pipeline.step()
        first, steps = time.perf_counter(), 0
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            steps += 1
        return first - begin, (time.perf_counter() - first) / max(steps, 1)


def main():
    arguments = parse_arguments()
    exported = arguments.work / f"openvino-{arguments.size}"
    if not (exported / "openvino_model.bin").exists():
        print("making the model", file=sys.stderr)
        make_model(arguments.size, arguments.work / f"plain-{arguments.size}", exported)
    import openvino_genai

    pipeline = Pipeline(exported, arguments.precision)
    batches = [int(batch) for batch in arguments.batches.split(",")]
    pipeline.seconds(max(batches), arguments.prompt, 8)  # warm-up
    decode = {batch: batch / pipeline.seconds(batch, arguments.prompt, arguments.new)[1] for batch in batches}
    prefill = arguments.prefill / pipeline.seconds(1, arguments.prefill, 2)[0]
    print(json.dumps({"version": openvino_genai.__version__, "precision": arguments.precision,
                      "decode_tokens_per_second": decode, "prefill_tokens_per_second": prefill}))


if __name__ == "__main__":
    main()
