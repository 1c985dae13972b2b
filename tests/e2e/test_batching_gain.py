"""Calls that run together take a fraction of the time that they take one after another."""

import time

import checkpoints
from concurrent_calls import ask, ask_together, make_calls
from server_process import Server


def test_together_takes_a_quarter_of_the_time():
    """On the paper's 124 M parameters in bfloat16, with random weights."""
    with Server(checkpoints.paper_small(), "--threads=0") as server:
        calls = make_calls(50257, most_prompt=32, most_new=16)
        ask_together(server.client, calls[:4])  # warm
        started = time.monotonic()
        alone = [ask(server.client, call) for call in calls]
        alone_seconds = time.monotonic() - started
        started = time.monotonic()
        together = ask_together(server.client, calls)
        together_seconds = time.monotonic() - started
        print(f"\n{len(calls)} calls one after another {alone_seconds:.1f} s, together "
              f"{together_seconds:.1f} s: {alone_seconds / together_seconds:.1f} times as fast")
        assert together == alone
        assert together_seconds <= alone_seconds / 4
