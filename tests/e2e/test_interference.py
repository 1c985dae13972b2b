"""A running stream hardly notices long prompts and large Embeds beside it: the paper's 124 M
parameters in bfloat16 with random weights, the server's defaults but for its threads."""

import random
import statistics
import threading
import time

import grpc

import checkpoints
from server_process import Server

STREAM_TOKENS = 400
LONG_PROMPT = 1000
EMBED_INPUTS = 500


def inter_token_seconds(client, prompt, seed):
    """The times between the tokens of one stream, as its client sees them."""
    arrivals = []
    for delta in client.stream(prompt, max_tokens=STREAM_TOKENS, temperature=1, seed=seed,
                               ignore_eos=True):
        arrivals += [time.monotonic()] * len(delta.tokens)
    assert len(arrivals) == STREAM_TOKENS
    return [after - before for before, after in zip(arrivals, arrivals[1:])]


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


class Load:
    """Calls of one kind, back to back on a thread of its own while entered."""

    def __init__(self, call):
        self._call = call
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.calls = 0

    def _run(self):
        while not self._stop.is_set():
            try:
                self._call()
                self.calls += 1
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, error

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._thread.join()


def test_streams_stay_smooth():
    rng = random.Random(4)

    def tokens(length):
        return [rng.randrange(50257) for _ in range(length)]

    with Server(checkpoints.paper_small(), "--threads=0") as server:
        client = server.client
        inter_token_seconds(client, tokens(20), 0)  # warm
        idle = [second for seed in range(2)
                for second in inter_token_seconds(client, tokens(20), seed)]
        with (Load(lambda: client.generate(tokens(LONG_PROMPT), max_tokens=1)) as prompts,
              Load(lambda: client.embed([tokens(16) for _ in range(EMBED_INPUTS)],
                                        pooling="mean")) as embeds):
            server.wait_for_metrics(lambda scrape: scrape.value("ddl_requests_running") >= 2)
            loaded = [second for seed in range(2)
                      for second in inter_token_seconds(client, tokens(20), seed)]
        server.wait_until_idle(timeout=120)
        idle_p99, loaded_p99 = percentile(idle, 0.99), percentile(loaded, 0.99)
        print(f"\np99 between tokens: idle {1000 * idle_p99:.1f} ms (median "
              f"{1000 * statistics.median(idle):.1f}), beside {prompts.calls} prompts of "
              f"{LONG_PROMPT} tokens and {embeds.calls} Embeds of {EMBED_INPUTS} inputs "
              f"{1000 * loaded_p99:.1f} ms (median {1000 * statistics.median(loaded):.1f}): "
              f"{loaded_p99 / idle_p99:.2f} times as long")
        assert prompts.calls > 0 and embeds.calls > 0
        assert loaded_p99 <= 3 * idle_p99
