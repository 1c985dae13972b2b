#!/usr/bin/env python3
"""Times llama.cpp on a random plain transformer of our baseline's geometry. bench/peers/llama_cpp_build.sh DIR comes first.

    bench/peers/llama_cpp_peer.py --work DIR [--size small] [--batches 1,8] [--dtype bf16]

The model is made in DIR once. Prints one JSON object: decode and prefill tokens per second of one round, as llama-batched-bench
measures them: in its own process, without a server.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

PEERS = pathlib.Path(__file__).resolve().parent


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="the folder of llama_cpp_build.sh")
    parser.add_argument("--size", choices=["small", "medium"], default="small")
    parser.add_argument("--batches", default="1,8,16,32", help="sequences that are decoded at a time")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of their prompts")
    parser.add_argument("--new", type=int, default=96, help="tokens that each gets")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt whose prefill is timed")
    parser.add_argument("--dtype", choices=["bf16", "q8_0", "f32"], default="bf16")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def measure(program, model, threads, prompt, new, batches):
    """One record of llama-batched-bench for each batch."""
    # What does not fit the context is left out without a word.
    context = max(8192, max(map(int, batches.split(","))) * (prompt + new))
    command = [program, "-m", model, "-t", threads, "-tb", threads, "-c", context, "-b", 2048, "-ub", 512,
               "-npp", prompt, "-ntg", new, "-npl", batches, "--output-format", "jsonl"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    records = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or len(records) != len(batches.split(",")):
        sys.exit(f"{program} failed:\n{done.stderr[-2000:]}")
    return records


def main():
    arguments = parse_arguments()
    program = arguments.work / "llama.cpp/build/bin/llama-batched-bench"
    if not program.exists():
        sys.exit(f"{program} is not there: run bench/peers/llama_cpp_build.sh {arguments.work}")
    model = arguments.work / f"{arguments.size}-{arguments.dtype}.gguf"
    if not model.exists():
        unfinished = model.with_suffix(".unfinished")
        subprocess.run([arguments.work / "venv/bin/python", PEERS / "make_gguf.py", unfinished, "--size", arguments.size,
                        "--dtype", arguments.dtype], check=True, stdout=sys.stderr)
        unfinished.rename(model)
    decode = measure(program, model, arguments.threads, arguments.prompt, arguments.new, arguments.batches)
    prefill = measure(program, model, arguments.threads, arguments.prefill, 1, "1")
    print(json.dumps({"precision": arguments.dtype,
                      "decode_tokens_per_second": {record["pl"]: record["speed_tg"] for record in decode},
                      "prefill_tokens_per_second": prefill[0]["speed_pp"]}))


if __name__ == "__main__":
    main()
