"""A server that has served for a while holds what it held: nothing of the calls that have ended stays behind."""

import re

import checkpoints
from server_process import Server

# Products of which the tensor library keeps nothing: of others it has code for the last 1024 shapes that it has met.
FLAGS = ["--dtype=bfloat16", "--quantization=int8", "--kv_cache_memory=4MiB"]

STREAMS, COMPLETIONS, LENGTH = 16, 4, 60  # at a time, of each, tokens of each
WARM_UP, ROUNDS = 50, 150  # after the first, the K/V cache has been full, and every thread has its buffers
ALLOWED_GROWTH = 2**20  # 440 bytes for each stream that has ended; 80 to 230 KiB were seen


def anonymous_bytes(process):
    with open(f"/proc/{process.pid}/smaps_rollup") as rollup:
        return 1024 * int(re.search(r"^Anonymous:\s+(\d+) kB$", rollup.read(), re.MULTILINE).group(1))


def serve(server, first, rounds):
    for number in range(first, first + rounds):
        streams = [server.client.stream([1 + number, 1 + stream], max_tokens=LENGTH, n=COMPLETIONS, ignore_eos=True,
                                        stream_interval=20) for stream in range(STREAMS)]
        for stream in streams:
            assert sum(len(delta.tokens) for delta in stream) == COMPLETIONS * LENGTH


def test_memory_stays_flat():
    with Server(checkpoints.small(), *FLAGS) as server:
        serve(server, 0, WARM_UP)
        before = anonymous_bytes(server.process)
        serve(server, WARM_UP, ROUNDS)
        growth = anonymous_bytes(server.process) - before
        tokens = ROUNDS * STREAMS * COMPLETIONS * LENGTH
        print(f"{growth / 2**10:.0f} KiB after {before / 2**20:.1f} MiB, while {tokens:,} tokens were generated")
        assert growth < ALLOWED_GROWTH
