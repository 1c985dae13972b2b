"""Cancelled and expired calls stop within a step, and give back what they held."""

import math
import threading

import grpc
import pytest
from ddl.v1 import inference_pb2_grpc

import checkpoints
from ddl_client import RpcError, generate_request
from server_process import Server

PROMPT = [11, 22, 33, 44, 55]
LONG = 500  # tokens


@pytest.fixture(scope="module")
def server():
    """The paper's small model in float32 on one thread: a step takes some 50 ms, in which a client's cancel
    arrives also on a machine that is busy with other tests."""
    with Server(checkpoints.paper_small(), "--dtype=float32") as running:
        yield running


def generated(scrape):
    return scrape.value("ddl_generated_tokens_total")


def check_books(server, before, finish_reason, code, method, received, slack=2):
    """Waits until nothing is left of the call, and compares the counters. `slack`: in steps of 50 ms,
    or as many shorter ones, where kernels are faster."""
    after = server.wait_until_idle()
    step = (after.value("ddl_step_duration_seconds_sum", phase="decode")
            / after.value("ddl_step_duration_seconds_count", phase="decode"))
    slack = max(slack, math.ceil(slack * 0.05 / step))
    grown = generated(after) - generated(before)
    assert received <= grown <= received + slack

    def growth(name, **labels):
        return after.value(name, **labels) - before.value(name, **labels)

    assert growth("ddl_wasted_tokens_total", reason=finish_reason) == grown
    assert growth("ddl_request_finished_total", finish_reason=finish_reason) == 1
    assert growth("ddl_requests_total", code=code, method=method) == 1
    assert growth("ddl_cancel_latency_seconds_count", reason=finish_reason) == 1


def test_cancel_at_the_second_event_of_a_stream(server):
    before = server.wait_until_idle()
    stream = server.client.stream(PROMPT, max_tokens=LONG, temperature=0)
    received = 0
    with pytest.raises(RpcError) as error:
        for delta in stream:  # the start has come before the first delta: that is event 2
            received += len(delta.tokens)
            stream.cancel()
    assert error.value.code == grpc.StatusCode.CANCELLED
    assert received == 1 and stream.end is None
    check_books(server, before, "cancel", "CANCELLED", "GenerateStream", received)


def test_cancel_a_unary_call(server):
    before = server.wait_until_idle()
    with grpc.insecure_channel(server.address) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate.future(generate_request(PROMPT, max_tokens=LONG, temperature=0))
        running = server.wait_for_metrics(lambda scrape: generated(scrape) > generated(before))
        call.cancel()
        received = generated(running) - generated(before)  # had it been a stream
        # The token of the step that ran while /metrics was read may come on top.
        check_books(server, before, "cancel", "CANCELLED", "Generate", received, slack=3)


def test_cancel_while_queued():
    """A call that waits for its turn goes at once, and the one before it goes on."""
    with Server(checkpoints.paper_small(), "--max_running_sequences=1") as server:
        running = server.client.stream(PROMPT, max_tokens=LONG)
        next(iter(running))
        with grpc.insecure_channel(server.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            queued = stub.Generate.future(generate_request(PROMPT, max_tokens=LONG))
            server.wait_for_metrics(lambda scrape: scrape.value("ddl_requests_waiting") == 1)
            queued.cancel()
            after = server.wait_for_metrics(
                lambda scrape: scrape.value("ddl_requests_waiting") == 0)
        assert after.value("ddl_requests_running") == 1
        assert after.value("ddl_request_finished_total", finish_reason="cancel") == 1
        assert after.value("ddl_waiting_tokens") == 0
        running.cancel()
        server.wait_until_idle()


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
def test_deadline_while_running(server, streamed):
    before = server.wait_until_idle()
    received = 0
    with pytest.raises(RpcError) as error:
        if streamed:
            for delta in server.client.stream(PROMPT, max_tokens=LONG, timeout=1):
                received += len(delta.tokens)
        else:
            server.client.generate(PROMPT, max_tokens=LONG, timeout=1)
    assert error.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    after = server.wait_until_idle()
    grown = generated(after) - generated(before)
    if streamed:
        assert 1 <= received <= grown <= received + 2
    assert 1 <= grown < LONG
    # The client's and the server's clock ring at about the same time: whichever is first.
    finished = {reason: after.value("ddl_request_finished_total", finish_reason=reason) -
                before.value("ddl_request_finished_total", finish_reason=reason)
                for reason in ("deadline", "cancel")}
    assert sum(finished.values()) == 1


def test_cancelled_calls_leave_the_others_alone(server):
    """Half of the calls of a batch are cancelled; the other half answers as if alone."""
    prompts = [[100 + i, 7, i] for i in range(4)]
    alone = [server.client.generate(prompt, max_tokens=12, temperature=0) for prompt in prompts]
    answers = {}

    def generate(i):
        answers[i] = server.client.generate(prompts[i], max_tokens=12, temperature=0)

    threads = [threading.Thread(target=generate, args=[i]) for i in range(len(prompts))]
    doomed = [server.client.stream(prompt, max_tokens=LONG) for prompt in prompts]
    for thread in threads:
        thread.start()
    for stream in doomed:
        next(iter(stream))
        stream.cancel()
    for thread in threads:
        thread.join()
    for i, expected in enumerate(alone):
        assert answers[i].completions[0].tokens == expected.completions[0].tokens, f"prompt {i}"
    server.wait_until_idle()
