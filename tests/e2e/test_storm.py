"""Two hundred clients that cancel, run out of time, read slowly and ask for everything at once.

DDL_STORM_SECONDS says for how long (120 unless set). Afterwards nothing is left of them: no request,
no block in use, no memory, and the metrics add up.
"""

import asyncio
import collections
import os
import random

import grpc
from ddl.v1 import inference_pb2, inference_pb2_grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from ddl_client import generate_request
from server_process import BUILD, ROOT, Server

SECONDS = float(os.environ.get("DDL_STORM_SECONDS", "120"))
CLIENTS = 200
CONNECTIONS = 8
CANCELLING, HURRIED, SLOW = 0.3, 0.2, 0.1  # shares of the calls
# Rounds of a storm before it, until memory has stopped growing: the K/V cache has been full once, every
# thread has its buffers, and the tensor library has met the shapes that it keeps something for.
ROUND_SECONDS = 10
MOST_ROUNDS = 15
STEADY = 12 * 2**20  # bytes that the last round added

FLAGS = ["--kv_cache_memory=64MiB",  # too small for all that run: sequences are preempted
         "--max_waiting_requests=100",  # fewer than there are clients: some are refused
         "--slow_reader_timeout=2s"]
LONGEST_PAUSE = 3.5  # seconds of a slow reader: some of them exceed the server's patience

# What may grow. malloc is told to give back what is freed: otherwise it keeps ever more of what large
# requests once took, and resident memory says nothing of what the server holds. So is the tensor
# library, which keeps code for the last 1024 shapes it has met. Under AddressSanitizer freed memory
# stays for a while, in a quarantine.
SANITIZED = "asan" in BUILD.name
ALLOWED_GROWTH = (192 if SANITIZED else 64) * 2**20
VARIABLES = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "131072",
             "MALLOC_TRIM_THRESHOLD_": "262144", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32",
             "ASAN_OPTIONS": "quarantine_size_mb=8:thread_local_quarantine_size_kb=16"}

METHODS = ("Generate", "GenerateStream", "Embed", "Score")
REFUSALS = {"QUEUE_FULL", "TOKENS_FULL", "DEADLINE_INFEASIBLE", "SLOW_READER"}


class Books:
    """What all clients have sent and received."""

    def __init__(self):
        self.sent = collections.Counter()  # method
        self.answers = collections.Counter()  # (method, code)
        self.refusals = collections.Counter()  # reason
        self.completed_ok = 0  # Generate and GenerateStream
        self.tokens_of_ok = 0
        self.problems = []


def random_ids(rng, most):
    return [rng.randrange(4000) for _ in range(rng.randint(1, most))]


# Beginnings that prompts share, for the prefix cache.
BEGINNINGS = [[i + 7] * 40 for i in range(5)]


class StormClient:
    def __init__(self, number, stub, books):
        self._rng = random.Random(number)
        self._stub = stub
        self._books = books

    async def run(self, until):
        loop = asyncio.get_running_loop()
        while loop.time() < until:
            await self._call_once()

    async def _call_once(self):
        rng = self._rng
        method = rng.choice(METHODS)
        slow = method == "GenerateStream" and rng.random() < SLOW * len(METHODS)
        mood = rng.random()
        cancelling = mood < CANCELLING
        hurried = not cancelling and mood < CANCELLING + HURRIED
        timeout = rng.uniform(0.001, 0.2) if hurried else None
        self._books.sent[method] += 1
        call = getattr(self._stub, method)(self._request(method, slow), timeout=timeout)
        if cancelling:
            asyncio.get_running_loop().call_later(rng.expovariate(2), call.cancel)
        code = grpc.StatusCode.OK
        try:
            if method == "GenerateStream":
                await self._read_stream(call, slow)
            else:
                self._check(method, await call)
        except asyncio.CancelledError:
            if not cancelling:
                raise  # the storm itself is being ended
            code = grpc.StatusCode.CANCELLED
        except grpc.aio.AioRpcError as error:
            code = error.code()
            await self._check_error(error, cancelling, hurried, slow)
        self._books.answers[method, code.name] += 1

    def _request(self, method, slow):
        rng = self._rng
        inputs = [inference_pb2.Input(token_ids=inference_pb2.TokenIds(ids=random_ids(rng, 120)))
                  for _ in range(rng.randint(1, 4))]
        if method == "Score":
            return inference_pb2.ScoreRequest(inputs=inputs)
        if method == "Embed":
            params = inference_pb2.EmbedParams(
                pooling=rng.randint(1, 5), readout=rng.choice([1, 2, 4]), layer=rng.randint(-6, 5))
            stats = inference_pb2.DdlStatsRequest(per_layer_beta=rng.random() < 0.2)
            return inference_pb2.EmbedRequest(inputs=inputs, params=params, ddl_stats=stats)
        prompt = rng.choice(BEGINNINGS) + random_ids(rng, 80)
        if slow:  # more, and larger, events than buffers on the way can hold
            return generate_request(prompt, max_tokens=200, n=4, logprobs=20, ignore_eos=True)
        return generate_request(
            prompt, max_tokens=rng.randint(1, 60), n=rng.choice([1, 1, 1, 2, 4]),
            seed=rng.randrange(1000), logprobs=rng.choice([None, 0, 3]),
            prompt_logprobs=rng.choice([None] * 9 + [1]), min_p=rng.choice([None, 0.05]),
            repetition_penalty=rng.choice([None, 1.1]), frequency_penalty=rng.choice([None, 0.2]),
            stop=rng.choice([[], ["the"]]), echo=rng.random() < 0.2,
            priority=rng.choice([None, "high", "low"]), stream_interval=rng.choice([None, 3]),
            ddl_stats=["per_layer_beta"] if rng.random() < 0.05 else ())

    async def _read_stream(self, call, slow):
        rng = self._rng
        pause_at = rng.randint(0, 30) if slow else None
        events = 0
        tokens = 0
        end = None
        async for event in call:
            kind = event.WhichOneof("event")
            if (kind == "start") != (events == 0) or end is not None:
                self._books.problems.append(f"event {events} of a stream is a {kind}")
            events += 1
            tokens += len(event.delta.tokens)
            if kind == "end":
                end = event.end
            if events == pause_at:
                await asyncio.sleep(rng.uniform(0.5, LONGEST_PAUSE))
        code = await call.code()
        if code == grpc.StatusCode.OK:
            if end is None or end.usage.completion_tokens != tokens:
                self._books.problems.append(f"{tokens} tokens came of a stream that ended with {end}")
            self._count_tokens(tokens)

    def _check(self, method, response):
        if method == "Generate":
            tokens = sum(len(each.tokens) for each in response.completions)
            if tokens != response.usage.completion_tokens:
                self._books.problems.append(f"{tokens} tokens came, not {response.usage}")
            self._count_tokens(tokens)

    def _count_tokens(self, tokens):
        self._books.completed_ok += 1
        self._books.tokens_of_ok += tokens

    async def _check_error(self, error, cancelling, hurried, slow):
        code = error.code()
        if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
            reason = self._reason(error)
            self._books.refusals[reason] += 1
            if reason not in REFUSALS or (reason == "SLOW_READER" and not slow):
                self._books.problems.append(f"refused with {reason}: {error.details()}")
            await asyncio.sleep(self._rng.uniform(0.05, 0.3))
        elif not (code == grpc.StatusCode.CANCELLED and cancelling
                  or code == grpc.StatusCode.DEADLINE_EXCEEDED and hurried):
            self._books.problems.append(f"{code}: {error.details()}")

    @staticmethod
    def _reason(error):
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                return info.reason
        return None


async def storm(address, seconds, books):
    # A connection of its own for each, with small windows, so that slow readers are noticed.
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0),
               ("grpc.http2.lookahead_bytes", 1024)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(CONNECTIONS)]
    stubs = [inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels]
    until = asyncio.get_running_loop().time() + seconds
    clients = [StormClient(number, stubs[number % CONNECTIONS], books) for number in range(CLIENTS)]
    await asyncio.gather(*(client.run(until) for client in clients))
    for channel in channels:
        await channel.close()


def check_books(books, scrape):
    """What the server counted against what the clients saw."""
    assert books.problems == []
    by_method = scrape.by("method", "ddl_requests_total")
    for method in METHODS:
        answered = {code: count for (name, code), count in books.answers.items() if name == method}
        # A call that its client gave up may not have reached the server; all others have.
        given_up = answered.get("CANCELLED", 0) + answered.get("DEADLINE_EXCEEDED", 0)
        assert books.sent[method] - given_up <= by_method[method] <= books.sent[method], method
        counted = scrape.by("code", "ddl_requests_total", method=method)
        assert counted["OK"] >= answered["OK"]
        # An answer that was on its way when the client gave up is the server's alone.
        assert counted.get("OK", 0) - answered["OK"] <= given_up
    assert scrape.value("ddl_request_duration_seconds_count") == scrape.value("ddl_requests_total")
    handled = sum(by_method[method] for method in METHODS)
    codes = collections.Counter()
    for method in METHODS:
        codes.update(scrape.by("code", "ddl_requests_total", method=method))
    assert codes.keys() <= {"OK", "CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    rejected = scrape.value("ddl_admission_rejections_total")
    finished = scrape.by("finish_reason", "ddl_request_finished_total")
    well = sum(finished.get(reason, 0) for reason in ("stop", "eos", "length", "context"))
    # All that was admitted has ended. A call may be cancelled before its message is there, or when
    # the engine has done with it.
    never_admitted = handled - rejected - sum(finished.values())
    assert codes["CANCELLED"] == finished["cancel"] + (well - codes["OK"]) + never_admitted
    assert 0 <= never_admitted <= codes["CANCELLED"]
    # Tokens: those of OK answers, those wasted, and of answers that nobody waited for any more.
    generated = scrape.value("ddl_generated_tokens_total")
    wasted = sum(scrape.value("ddl_wasted_tokens_total", reason=reason)
                 for reason in ("cancel", "deadline", "error"))
    assert scrape.value("ddl_request_generated_tokens_sum", task="generate") == generated
    ended_well = sum(count for reason, count in scrape.by(
        "finish_reason", "ddl_request_finished_total", task="generate").items()
        if reason in ("stop", "eos", "length", "context"))
    not_taken = ended_well - books.completed_ok
    beyond = generated - wasted - books.tokens_of_ok
    assert 0 <= not_taken and (not_taken == 0) == (beyond == 0) and beyond >= not_taken
    assert beyond <= 800 * not_taken  # 4 completions of 200 tokens are the most
    assert scrape.value("ddl_request_prompt_tokens_count") == sum(finished.values())


def check_idle(scrape, blocks):
    assert scrape.busy() == {}
    assert scrape.value("ddl_sequences_paused") == 0
    kept = {state: scrape.value("ddl_kv_blocks", state=state) for state in ("free", "used", "cached")}
    assert kept["used"] == 0 and sum(kept.values()) == blocks


def resident(scrape):
    return scrape.value("process_resident_memory_bytes")


def warm_up(server, books, blocks):
    """The scrape after the round that added next to nothing to resident memory."""
    before = server.scrape()
    for number in range(1, MOST_ROUNDS + 1):
        asyncio.run(storm(server.address, ROUND_SECONDS, books))
        after = server.wait_until_idle(60)
        check_idle(after, blocks)
        print(f"round {number}: resident memory {resident(after) / 2**20:.1f} MiB")
        if resident(after) - resident(before) < STEADY:
            return after
        before = after
    raise AssertionError(f"memory still grows after {MOST_ROUNDS} rounds")


def test_storm():
    books = Books()
    with Server(ROOT / "models" / "ddl-demo", *FLAGS, **VARIABLES) as server:
        blocks = server.scrape().value("ddl_kv_blocks")
        warm = warm_up(server, books, blocks)
        asyncio.run(storm(server.address, SECONDS, books))
        after = server.wait_until_idle(60)
        print_report(books, warm, after)
        check_idle(after, blocks)
        check_books(books, after)
        assert resident(after) - resident(warm) < ALLOWED_GROWTH
        # It lives, and works.
        answer = server.client.generate("She was", max_tokens=20, ignore_eos=True, seed=1)
        assert answer.usage.completion_tokens == 20
        server.signal()
        assert server.wait() == 0


def print_report(books, warm, after):
    mib = 2**20
    print(f"\n{sum(books.sent.values())} calls: {dict(books.sent)}")
    print(f"answers: { {' '.join(key): count for key, count in sorted(books.answers.items())} }")
    print(f"refused: {dict(books.refusals)}")
    print(f"ddl_requests_total: {after.by('code', 'ddl_requests_total')}")
    for name in ("ddl_request_finished_total", "ddl_admission_rejections_total",
                 "ddl_wasted_tokens_total", "ddl_prompt_tokens_total"):
        label = {"ddl_request_finished_total": "finish_reason",
                 "ddl_prompt_tokens_total": "source"}.get(name, "reason")
        print(f"{name}: {after.by(label, name)}")
    for name in ("ddl_generated_tokens_total", "ddl_preemptions_total", "ddl_stream_stalls_total"):
        print(f"{name}: {after.value(name):g}")
    print(f"resident memory: {resident(warm) / mib:.1f} MiB after the warm phase, "
          f"{resident(after) / mib:.1f} MiB after the storm")
