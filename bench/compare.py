#!/usr/bin/env python3
"""How fast we are, beside whom: one command, one JSON file, two plots. docs/performance.md says how to read them.

    make bench                                    what is below, built and installed first
    bench/compare.py --checkpoints DIR            P1: DDL variants beside the additive baseline, in our engine; then our server
    bench/compare.py --checkpoints DIR --peers P  the same, with the peers that are in P (see --help) beside the server

Contestants take turns in every round, so that what else the machine does meets all of them; what is reported are medians over
rounds of the ratios within a round, with the smallest and the largest.

The folder of --peers holds what was installed there, each as the script's head says; what is missing is left out, with a line
that says so:
    P/openvino-venv               bench/peers/openvino_genai_peer.py
    P/vllm-venv                   bench/peers/vllm_cpu_peer.py
    P/llama-cpp                   bench/peers/llama_cpp_build.sh, llama_cpp_peer.py
    P/deep-delta-learning         the official code, and P/reference-venv: bench/peers/reference_peer.py
"""

import argparse
import datetime
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import make_checkpoints
import our_server
import plots

BENCH = pathlib.Path(__file__).resolve().parent
ROOT = BENCH.parent
BASELINE = "gpt"
OTHERS = ("ccec", "tcec", "vdim1")
SERVED = ("ccec", "gpt")
PROMPT, NEW, PREFILL = 64, 96, 512  # tokens
CONTEXT = 1024  # of the paper's sizes
OFFICIAL = "official code"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers = lambda text: [int(number) for number in text.split(",")]
    names = lambda text: [name for name in text.split(",") if name]
    parser.add_argument("--checkpoints", type=pathlib.Path, default=ROOT / "build/bench/checkpoints",
                        help="random-weight checkpoints; made if missing (default build/bench/checkpoints)")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release", help="where the programs were built")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench",
                        help="folder for results.json and the plots (default build/bench; docs/performance is what is published)")
    parser.add_argument("--peers", type=pathlib.Path, help="folder of installed peers; without it there are none")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=names, default=["small", "medium"], help="of the engine's comparison; the first is served")
    parser.add_argument("--variants", type=names, default=list(OTHERS), help="compared with the baseline, gpt")
    parser.add_argument("--batches", type=numbers, default=[1, 8, 16, 32], help="of the engine's comparison")
    parser.add_argument("--served", type=names, default=list(SERVED), help="variants that are served")
    parser.add_argument("--concurrency", type=numbers, default=[1, 8, 16, 32, 64], help="of the server and the peers")
    parser.add_argument("--steps", type=int, default=16, help="decode steps of the engine's comparison, each round")
    parser.add_argument("--new", type=int, default=NEW, help="tokens of a completion")
    parser.add_argument("--quantization", choices=["none", "int8"], default="none",
                        help="int8: our weights in 8 bits, beside llama.cpp's q8_0")
    parser.add_argument("--skip", type=names, default=[], help="engine, server or both, comma-separated")
    return parser.parse_args()


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def output_of(*command, **options):
    done = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode != 0:
        sys.exit(f"{pathlib.Path(str(command[0])).name} ended with {done.returncode}")
    return done.stdout


def machine():
    """What a result is worth nothing without."""
    cpuinfo = pathlib.Path("/proc/cpuinfo").read_text()
    model = re.search(r"^model name\s*: (.*)$", cpuinfo, re.MULTILINE)
    flags = set(re.search(r"^flags\s*: (.*)$", cpuinfo, re.MULTILINE).group(1).split())
    git = lambda *command: output_of("git", "-C", ROOT, *command).strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""),
        "processor": model.group(1) if model else "unknown",
        "processors": len(os.sched_getaffinity(0)),
        "instruction_sets": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        "load_average_before": os.getloadavg()[0],
        "command": " ".join(sys.argv),
    }


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "by_round": values}


def text_of(values):
    return f"{values['median']:.3f} ({values['min']:.3f}..{values['max']:.3f})"


# ---- The engine: variants beside the additive baseline


def compare_engine(arguments, size):
    folders = [make_checkpoints.make(arguments.checkpoints, size, variant) for variant in [BASELINE, *arguments.variants]]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        print(output_of(arguments.build / "bin/engine_benchmark", "--models=" + ",".join(map(str, folders)),
                        "--batches=" + ",".join(map(str, arguments.batches)), f"--steps={arguments.steps}",
                        f"--prefill={PREFILL}", f"--rounds={arguments.rounds}", f"--json={file.name}"))
        return json.load(file)


# ---- Those that answer one question a round: decode tokens per second by batch, and of prefill


class Peer:
    """A script in bench/peers, run once a round."""

    def __init__(self, name, command):
        self.name = name
        self._command = command

    def measure(self, batches, new, seed):
        out = output_of(*self._command, "--batches", ",".join(map(str, batches)), "--prompt", PROMPT, "--new", new,
                        "--prefill", PREFILL)
        result = json.loads(out.splitlines()[-1])
        return {"decode": {int(batch): speed for batch, speed in result["decode_tokens_per_second"].items()},
                "prefill": result["prefill_tokens_per_second"]}


class OurServer:
    """Our server, started for the round, and our load generator, over gRPC on the loopback interface.

    It takes all prompts before it goes on decoding, as the peers' programs do, instead of keeping the streams that run smooth.
    """

    def __init__(self, build, folder, variant, quantization):
        self.name = f"ddl_server {variant}"
        self._build = build
        self._folder = folder
        self._quantization = quantization

    def measure(self, batches, new, seed):
        with our_server.running(self._build, self._folder, f"--max_context_length={CONTEXT}", f"--quantization={self._quantization}",
                                "--max_decode_slowdown=100",
                                f"--threads={len(os.sched_getaffinity(0))}") as (_, address, _):
            decode = {batch: self._decode(address, batch, new, seed) for batch in batches}
            row = self._bench(address, seed + 1, "--concurrency=1", "--requests=3", f"--prompt_tokens={PREFILL}",
                              "--output_tokens=2")
        return {"decode": {batch: speeds[0] for batch, speeds in decode.items()},
                "output": {batch: speeds[1] for batch, speeds in decode.items()},
                "prefill": PREFILL / row["median_ttft_ms"] * 1e3}

    def _decode(self, address, batch, new, seed):
        """Of decoding alone, as the peers are timed, and of the whole, prompts and client included; the means of two waves."""
        rows = [self._bench(address, 1000 * seed + wave, f"--concurrency={batch}", f"--requests={batch}",
                            f"--prompt_tokens={PROMPT}", f"--output_tokens={new}") for wave in range(2)]
        if not all(row["decode_throughput"] for row in rows):
            sys.exit(f"{self.name}: {batch} streams of {new} tokens never all ran at a time: --new more")
        return [statistics.mean(row[key] for row in rows) for key in ("decode_throughput", "output_throughput")]

    def _bench(self, address, seed, *flags):
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            output_of(self._build / "bin/ddl_bench", f"--address={address}", f"--seed={seed}", f"--json={file.name}",
                      "--warmup_requests=1", "--noprogress", *flags)
            [row] = json.load(file)["rows"]
        if row["failed"]:
            sys.exit(f"{self.name}: {row['failed']} requests failed: {row['failures_by_code']}")
        return row


def find_peers(folder, size, quantization="none"):
    """The peers that are there; a line on stderr for each that is not."""
    if folder is None:
        say("no peers: --peers was not given")
        return []
    folder = folder.resolve()
    openvino, vllm, llama = folder / "openvino-venv/bin/python", folder / "vllm-venv/bin/python", folder / "llama-cpp"
    official, reference = folder / "deep-delta-learning", folder / "reference-venv/bin/python"
    peers = []
    scripts = BENCH / "peers"
    for name, needed, command in [
        ("OpenVINO GenAI", [openvino], [openvino, scripts / "openvino_genai_peer.py", "--work", folder, "--size", size]),
        ("vLLM", [vllm], [vllm, scripts / "vllm_cpu_peer.py", "--work", folder, "--size", size]),
        ("llama.cpp", [llama / "llama.cpp/build/bin/llama-batched-bench"],
         [sys.executable, scripts / "llama_cpp_peer.py", "--work", llama, "--size", size,
          "--dtype", "bf16" if quantization == "none" else "q8_0"]),
        (OFFICIAL, [official, reference], [reference, scripts / "reference_peer.py", "--reference", official]),
    ]:
        missing = [path for path in needed if not path.exists()]
        if missing:
            say(f"without {name}: {missing[0]} is not there")
        elif quantization != "none" and name != "llama.cpp":
            say(f"without {name}: it is not timed in 8 bits")
        elif name == OFFICIAL and size != "small":
            say(f"without {name}: it is timed in the small size only, not {size}")
        else:
            peers.append(Peer(name, command))
    return peers


def compare_servers(arguments):
    size = arguments.sizes[0]
    contestants = [OurServer(arguments.build, make_checkpoints.make(arguments.checkpoints, size, variant), variant,
                              arguments.quantization)
                   for variant in arguments.served]
    peers = find_peers(arguments.peers, size, arguments.quantization)
    contestants += peers
    measured = {contestant.name: [] for contestant in contestants}
    for number in range(arguments.rounds):
        turn = number % len(contestants)  # nobody always follows the same one
        for contestant in contestants[turn:] + contestants[:turn]:
            say(f"round {number + 1} of {arguments.rounds}: {contestant.name}")
            # Another seed each round, so that no prompt is in a prefix cache.
            measured[contestant.name].append(contestant.measure(arguments.concurrency, arguments.new, 2 * number + 1))
    return {"size": size, "prompt_tokens": PROMPT, "new_tokens": arguments.new, "quantization": arguments.quantization, "prefill_tokens": PREFILL,
            "contestants": summarise(measured, [peer.name for peer in peers])}


def summarise(measured, peers):
    """Speeds, and ours by the peers' in the same round.

    measured: {contestant: [of each round {"decode": {batch: tokens/s}, "prefill": tokens/s, ...}]}; peers: names of those in it
    that are not ours. Against a plain transformer's peers, it is the better one of each round that counts.
    """
    opponents = {"ratio_to_better_peer": [name for name in peers if name != OFFICIAL],
                 "ratio_to_official_code": [name for name in peers if name == OFFICIAL]}
    speeds = {name: [labelled(of_round) for of_round in rounds] for name, rounds in measured.items()}
    contestants = {}
    for name, rounds in measured.items():
        entry = contestants[name] = {"tokens_per_second": {}}
        for label in speeds[name][0]:
            ours = [of_round[label] for of_round in speeds[name]]
            entry["tokens_per_second"][label] = spread(ours)
            for ratio, names in opponents.items():
                if name not in peers and names:
                    best = [max(speeds[other][i][label] for other in names) for i in range(len(rounds))]
                    entry.setdefault(ratio, {})[label] = spread([mine / theirs for mine, theirs in zip(ours, best)])
        if "output" in rounds[0]:
            entry["output_tokens_per_second"] = {
                f"decode {batch}": spread([of_round["output"][batch] for of_round in rounds]) for batch in rounds[0]["output"]}
    return contestants


def labelled(of_round):
    """{"decode 8": tokens/s, ..., "prefill": tokens/s}"""
    return {f"decode {batch}": speed for batch, speed in of_round["decode"].items()} | {"prefill": of_round["prefill"]}


def print_servers(result):
    for name, entry in result["contestants"].items():
        print(name)
        for label, speeds in entry["tokens_per_second"].items():
            line = f"  {label:12} {speeds['median']:10.1f} tokens/s"
            for title, key in (("better peer", "ratio_to_better_peer"), ("official code", "ratio_to_official_code")):
                if label in entry.get(key, {}):
                    line += f"   / {title} {text_of(entry[key][label])}"
            print(line)


def main():
    arguments = parse_arguments()
    if unknown := set(arguments.skip) - {"engine", "server"}:
        sys.exit(f"--skip: {unknown.pop()!r} is neither engine nor server")
    arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine()}
    if results["machine"]["load_average_before"] > 0.5:
        say(f"the machine is busy (load average {results['machine']['load_average_before']:.1f}): trust the ratios, not the figures")
    if "engine" not in arguments.skip:
        results["engine"] = {size: compare_engine(arguments, size) for size in arguments.sizes}
    if "server" not in arguments.skip:
        results["server"] = compare_servers(arguments)
        print_servers(results["server"])
    path = arguments.out / "results.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{results['machine']['processor']}, {results['machine']['processors']} processors, commit "
          f"{results['machine']['commit']}\n{path}")
    plots.draw(results, arguments.out)


if __name__ == "__main__":
    main()
