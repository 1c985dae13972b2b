#!/usr/bin/env python3
"""How long a server takes from its start to the first token, and what memory it keeps.

    bench/start_and_memory.py [--rounds 7] [--checkpoints DIR | --model DIR] [--flags=--quantization=int8]

Starts the server --rounds times, each time with one request for one token as soon as it is ready: from exec to the token's
arrival. Then compares anonymous resident memory (mapped files are not in it) with that of a server on the tiny checkpoint: what is
left is the model's, to be held against its weights' bytes and the K/V cache in use. Then, on the tiny checkpoint, memory as it is
while --tokens tokens are generated, at 20 points of them (0: not).
"""

import argparse
import pathlib
import re
import statistics
import sys
import time

import make_checkpoints
import our_server
from ddl_client import Client

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROMPT = list(range(1, 33))
SAMPLES = 20  # of memory, while tokens are generated


class Server:
    def __init__(self, build, folder, flags):
        self._running = our_server.running(build, folder, *flags)

    def __enter__(self):
        self.start = time.monotonic()
        self.process, address, _ = self._running.__enter__()
        self.client = Client(address, timeout=600)
        return self

    def __exit__(self, *error):
        self.client.close()
        return self._running.__exit__(*error)

    def first_token(self):
        """Seconds since the start, once it has arrived."""
        next(iter(self.client.stream(PROMPT, max_tokens=1, temperature=0)))
        return time.monotonic() - self.start

    def anonymous_bytes(self):
        rollup = pathlib.Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Anonymous:\s+(\d+) kB", rollup, re.MULTILINE).group(1)) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=pathlib.Path, default=ROOT / "build/bench/checkpoints",
                        help="made if missing (default build/bench/checkpoints)")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build/release")
    parser.add_argument("--model", type=pathlib.Path, help="a checkpoint's folder, instead of small-ccec of random weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--flags", action="append", default=[], help="of the server, in every start")
    arguments = parser.parse_args()
    arguments.checkpoints.mkdir(parents=True, exist_ok=True)
    tiny = make_checkpoints.make(arguments.checkpoints, "tiny", "ccec")
    model = arguments.model or make_checkpoints.make(arguments.checkpoints, "small", "ccec")

    seconds, own = [], []
    for number in range(arguments.rounds):
        print(f"start {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
        with Server(arguments.build, model, arguments.flags) as server:
            seconds.append(server.first_token())
            parameters = server.client.model_info().parameter_count
            loaded = server.anonymous_bytes()
        with Server(arguments.build, tiny, arguments.flags) as server:
            server.first_token()
            own.append(loaded - server.anonymous_bytes())
    print(f"{model.name}, from exec to the first token: {statistics.median(seconds):.2f} s ({min(seconds):.2f}..{max(seconds):.2f})")
    mebibytes = statistics.median(own) / 2**20
    print(f"anonymous memory of the model: {mebibytes:.0f} MiB for {parameters:,} parameters, "
          f"{statistics.median(own) / parameters:.3f} bytes each")
    if arguments.tokens == 0:
        return

    with Server(arguments.build, tiny, arguments.flags) as server:
        info = server.client.model_info()
        tokens = min(900, info.max_context_length - 2)
        streams, n = 16, 4
        generated, resident = 0, []
        while generated < arguments.tokens:
            stubs = [server.client.stream([i + 1, generated % 97 + 1], max_tokens=tokens, n=n, ignore_eos=True,
                                          temperature=1, stream_interval=100) for i in range(streams)]
            for stub in stubs:
                generated += sum(len(delta.tokens) for delta in stub)
            if generated >= (len(resident) + 1) * arguments.tokens / SAMPLES:
                resident.append(server.anonymous_bytes() / 2**20)
                print(f"{generated:,} of {arguments.tokens:,} tokens, {resident[-1]:.1f} MiB", file=sys.stderr, flush=True)
        print(f"anonymous memory of the tiny model's server, MiB, after every {arguments.tokens // SAMPLES:,} of {generated:,} generated tokens: "
              + " ".join(f"{mebibytes:.1f}" for mebibytes in resident))


if __name__ == "__main__":
    main()
