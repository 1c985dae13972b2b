#!/usr/bin/env python3
"""What serving costs beside computing: streams through a server, over gRPC, beside the same through the engine in one process.

    bench/service_cost.py [--rounds 7] [--streams 64] [--checkpoints DIR | --model DIR]

In every round engine_streams runs the streams without gRPC, then ddl_bench the same through a server. Of the server, while all
streams run: the step thread's time outside the model, a step, and the processor time of everything but the model. The model's
is that of the threads named ddl-step and ddl-compute, less what the step thread spent on the engine. ddl_bench shares the processors with the
server, as any client on its machine would: the ratio of the two throughputs has the client's work in it.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import make_checkpoints
import our_server

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT, SHORTEST, LONGEST = 64, 64, 128  # tokens of prompts, and of completions: streams do not end together
TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds


class Snapshot:
    """What a server has done up to now."""

    def __init__(self, process, metrics_address):
        text = urllib.request.urlopen(f"http://{metrics_address}/metrics", timeout=30).read().decode()
        total = lambda name: sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))
        self.time = time.monotonic()
        self.steps = total("ddl_step_duration_seconds_count")
        self.model = total("ddl_model_duration_seconds_sum")
        self.compute = self.all = 0.0  # seconds of processor time
        for task in pathlib.Path(f"/proc/{process.pid}/task").iterdir():
            name, fields = (task / "stat").read_text().split("(", 1)[1].rsplit(") ", 1)
            seconds = sum(map(int, fields.split()[11:13])) * TICK
            self.all += seconds
            if name in ("ddl-step", "ddl-compute"):
                self.compute += seconds


def run_json(*command):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def through_server(build, folder, streams, requests, threads, seed):
    """(output tokens per second, seconds of the step thread outside the model in a step, share of processor time outside it)"""
    with our_server.running(build, folder, f"--threads={threads}", f"--max_running_sequences={streams}",
                            f"--max_context_length={PROMPT + LONGEST}") as (process, address, metrics_address), \
            tempfile.NamedTemporaryFile(suffix=".json") as file:
        snapshots = [Snapshot(process, metrics_address)]
        load_ended = threading.Event()

        def watch():
            """Snapshots while so many streams run all the time: after the first prompts, and before the last requests."""
            for steps in (streams * PROMPT / 512 + SHORTEST / 2, SHORTEST * (requests / streams - 1.5)):
                goal = snapshots[-1].steps + steps
                while (now := Snapshot(process, metrics_address)).steps < goal and not load_ended.wait(0.25):
                    pass
                snapshots.append(now)

        command = [build / "bin/ddl_bench", f"--address={address}", f"--concurrency={streams}", f"--prompt_tokens={PROMPT}",
                   f"--output_tokens={SHORTEST}..{LONGEST}", "--noprogress", f"--seed={seed}"]
        subprocess.run([*command, f"--requests={streams}"], stdout=subprocess.DEVNULL, check=True)
        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            subprocess.run([*command, f"--requests={requests}", "--warmup_requests=0", f"--json={file.name}"],
                           stdout=subprocess.DEVNULL, check=True)
        finally:
            load_ended.set()
            watcher.join()
        [row] = json.load(file)["rows"]
    _, begin, end = snapshots
    if begin.steps == end.steps:
        sys.exit("the streams had ended before anything was seen of them: take more, or longer ones")
    outside_model = (end.time - begin.time) - (end.model - begin.model)
    everything = end.all - begin.all
    others = everything - (end.compute - begin.compute)
    return row["output_throughput"], outside_model / (end.steps - begin.steps), (others + outside_model) / everything


def text_of(values, scale=1.0, unit=""):
    return f"{statistics.median(values) * scale:.3g}{unit} ({min(values) * scale:.3g}..{max(values) * scale:.3g})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=pathlib.Path, default=ROOT / "build/bench/checkpoints",
                        help="made if missing (default build/bench/checkpoints)")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--model", type=pathlib.Path, help="a checkpoint's folder, instead of small-ccec of random weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if (folder := arguments.model) is None:
        arguments.checkpoints.mkdir(parents=True, exist_ok=True)
        folder = make_checkpoints.make(arguments.checkpoints, "small", "ccec")
    requests = 4 * arguments.streams
    ratios, outside, shares, served, driven, alone = [], [], [], [], [], []
    for number in range(arguments.rounds):
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        engine = run_json(arguments.build / "bin/engine_streams", f"--model={folder}", f"--streams={arguments.streams}",
                          f"--requests={requests}", f"--prompt_tokens={PROMPT}", f"--output_tokens={SHORTEST}..{LONGEST}",
                          f"--threads={arguments.threads}", f"--seed={number + 1}")
        throughput, seconds, share = through_server(arguments.build, folder, arguments.streams, requests, arguments.threads,
                                                    number + 1)
        driven.append(engine["output_tokens_per_second"])
        alone.append((engine["seconds"] - engine["model_seconds"]) / engine["steps"])
        served.append(throughput)
        ratios.append(throughput / driven[-1])
        outside.append(seconds)
        shares.append(share)
    print(f"{arguments.streams} streams of {PROMPT} + {SHORTEST}..{LONGEST} tokens, {folder.name}, "
          f"{arguments.threads} threads; medians of {arguments.rounds} interleaved rounds (smallest..largest)")
    print(f"throughput over gRPC                      {text_of(served)} tokens/s")
    print(f"throughput of the engine in one process   {text_of(driven)} tokens/s")
    print(f"ratio of a round                          {text_of(ratios)}")
    print(f"step thread outside the model, a step     {text_of(outside, 1e6, ' us')}; without gRPC {text_of(alone, 1e6, ' us')}")
    print(f"processor time outside the model          {text_of(shares, 100, ' %')} of the server's")


if __name__ == "__main__":
    main()
