"""ModelService, health, and the way from loading to a stopped server."""

import json
import threading
import time

import grpc
import pytest
from ddl.v1 import inference_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

import checkpoints
from ddl_client import Client, RpcError
from server_process import ROOT, Server

SERVICES = ["", "ddl.v1.InferenceService", "ddl.v1.ModelService"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_model_info(server, client):
    [model] = client.list_models()
    assert model == client.model_info() == client.model_info(model.name)
    assert model.name == checkpoints.small().name  # the folder's
    assert model.state == inference_pb2.MODEL_STATE_READY
    assert len(model.weights_sha256) == 64 and model.version
    assert (model.variant, model.dtype, model.device) == ("ccec", "float32", "cpu")
    assert (model.num_layers, model.num_heads, model.hidden_size) == (2, 2, 64)
    assert (model.value_channels, model.vocab_size) == (4, checkpoints.VOCAB_SIZE)
    assert model.max_context_length == 512
    assert model.parameter_count > checkpoints.VOCAB_SIZE * 64
    assert (model.tokenizer, model.eos_source) == ("tokenizer.json", "tokenizer.json")
    assert list(model.eos_token_ids) == [0]
    assert (list(model.prefix_token_ids), list(model.suffix_token_ids)) == ([], [])
    assert set(model.tasks) == {"generate", "embed", "score"}
    assert set(model.supported_pooling) == {
        inference_pb2.POOLING_LAST_TOKEN, inference_pb2.POOLING_MEAN, inference_pb2.POOLING_MAX,
        inference_pb2.POOLING_WEIGHTED_MEAN, inference_pb2.POOLING_NONE}
    assert model.determinism == "batch_invariant"


def test_server_info(client):
    info = client.server_info()
    assert info.version and info.git_commit and info.libtorch_version
    assert info.ready and not info.draining
    assert info.max_running >= 64 and info.max_waiting == 256
    assert (info.requests_running, info.requests_waiting, info.waiting_tokens) == (0, 0, 0)
    assert info.kv_cache_usage_ratio == 0
    assert info.kv_tokens_capacity >= 512
    assert info.uptime_seconds > 0


def test_a_model_can_be_given_a_name():
    with Server(f"other={ROOT}/tests/data/goldens/gpt_base") as server:
        assert server.client.model_info().name == "other"
        assert server.client.generate([1], max_tokens=2, model="other").model == "other"


def test_several_models():
    """Each answers as it does alone; the first is the default."""
    folders = {name: ROOT / "tests/data/goldens" / name for name in ("ccec_base", "tc_base")}
    alone = {}
    for name, folder in folders.items():
        with Server(folder, "--dtype=float32") as server:
            alone[name] = server.client.generate([1, 2, 3], max_tokens=20, temperature=0)
    both = f"a={folders['ccec_base']},b={folders['tc_base']}"
    with Server(both, "--dtype=float32") as server:
        client = server.client
        assert [model.name for model in client.list_models()] == ["a", "b"]
        assert [model.variant for model in client.list_models()] == ["ccec", "tc"]
        for asked, name in (("", "ccec_base"), ("a", "ccec_base"), ("b", "tc_base")):
            answer = client.generate([1, 2, 3], max_tokens=20, temperature=0, model=asked)
            assert answer.completions[0].tokens == alone[name].completions[0].tokens
        with pytest.raises(RpcError) as caught:
            client.generate([1], model="c")
        assert "served: 'a', 'b'" in caught.value.message
        tokens = server.scrape().by("model", "ddl_generated_tokens_total")
        assert tokens == {"a": 40, "b": 20}


def test_generation_config_names_the_ends(tmp_path):
    """Each of several ids ends a completion, also of a model that is served without its tokenizer."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in checkpoints.small().iterdir():
        (folder / path.name).symlink_to(path)
    ends = [5, 200]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends, 384]}))
    for flags, tokenizer in (([], "tokenizer.json"), (["--tokenizer=none"], "")):
        with Server(folder, *flags) as server:
            info = server.client.model_info()
            assert (info.tokenizer, info.eos_source) == (tokenizer, "generation_config.json")
            assert list(info.eos_token_ids) == ends
            server.log.wait_for(r"eos_token_ids=5,200 eos_source=generation_config.json, not used: "
                                r"generation_config.json: 384 \(the model has 384 ids\)")
            for token in (0, *ends):  # 0 is the tokenizer's own
                [completion] = server.client.generate(
                    [1, 2], max_tokens=3, seed=1, logit_bias={token: 100}).completions
                stops = token in ends
                assert [each.token_id for each in completion.tokens] == [token] * (1 if stops else 3)
                assert completion.finish_reason == (inference_pb2.FINISH_REASON_EOS if stops else
                                                    inference_pb2.FINISH_REASON_LENGTH)
            if not tokenizer:
                with pytest.raises(RpcError, match="FAILED_PRECONDITION.*--tokenizer=none"):
                    server.client.generate("text")


@pytest.mark.parametrize("service", SERVICES)
def test_health(client, service):
    assert client.health(service) == "SERVING"


def test_health_of_an_unknown_service(client):
    with pytest.raises(RpcError) as caught:
        client.health("ddl.v1.Nothing")
    assert caught.value.code == grpc.StatusCode.NOT_FOUND


class Watch:
    """Health of all services, as Watch tells it, in a thread for each."""

    def __init__(self, server):
        self._channel = grpc.insecure_channel(server.address)
        stub = health_pb2_grpc.HealthStub(self._channel)
        self.seen = {service: [] for service in SERVICES}
        self._changed = threading.Condition()
        for service in SERVICES:
            call = stub.Watch(health_pb2.HealthCheckRequest(service=service))
            threading.Thread(target=self._read, args=[service, call], daemon=True).start()

    def _read(self, service, call):
        try:
            for response in call:
                with self._changed:
                    self.seen[service].append(response.status)
                    self._changed.notify_all()
        except grpc.RpcError:
            pass  # The server has gone.

    def wait_for(self, status, timeout=60):
        with self._changed:
            assert self._changed.wait_for(
                lambda: all(seen[-1:] == [status] for seen in self.seen.values()),
                timeout), self.seen


def test_not_ready_while_loading():
    """It listens at once, says NOT_SERVING and UNAVAILABLE, and then works."""
    with Server(checkpoints.paper_small(), ready=False) as server:
        watch = Watch(server)
        assert server.client.health() == "NOT_SERVING"
        assert server.client.list_models()[0].state != inference_pb2.MODEL_STATE_READY
        assert server.scrape().value("ddl_server_ready") == 0
        with pytest.raises(RpcError) as caught:
            server.client.generate([1], max_tokens=1)
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        assert caught.value.retry_seconds > 0
        watch.wait_for(SERVING)
        assert watch.seen[""][0] == NOT_SERVING
        assert server.client.generate([1], max_tokens=1).usage.completion_tokens == 1
        assert server.scrape().value("ddl_server_ready") == 1
        assert server.scrape().by("reason", "ddl_admission_rejections_total") == {"loading": 1}


def test_drain():
    """SIGTERM: health says so, the running stream ends well, new calls are refused; exit code 0."""
    with Server(checkpoints.medium(), "--drain_timeout=5m") as server:
        watch = Watch(server)
        watch.wait_for(SERVING)
        stream = server.client.stream([1, 2, 3], max_tokens=400, temperature=0)
        deltas = iter(stream)
        received = len(next(deltas).tokens)
        server.signal()
        watch.wait_for(NOT_SERVING)
        refused = refusals_until_unavailable(server)
        assert refused.retry_seconds > 0
        draining = server.scrape()
        assert draining.value("ddl_server_draining") == 1
        assert draining.value("ddl_requests_running") == 1, "the stream ended too early to see it"
        received += sum(len(delta.tokens) for delta in deltas)
        assert received == stream.end.usage.completion_tokens == 400
        assert server.wait() == 0  # though the watches are still open


def refusals_until_unavailable(server):
    """The first refusal of a short call; the moment after the signal may still be too early."""
    with Client(server.address, timeout=30) as other:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                other.embed([[1]])
            except RpcError as error:
                assert error.code == grpc.StatusCode.UNAVAILABLE
                return error
    raise AssertionError("calls are still accepted 30 s after SIGTERM")


def test_drain_delay():
    """New calls are still served while load balancers learn of it."""
    with Server(checkpoints.medium(), "--drain_delay=30s") as server:
        watch = Watch(server)
        watch.wait_for(SERVING)
        server.signal()
        watch.wait_for(NOT_SERVING)
        assert server.client.generate(
            [1], max_tokens=3, ignore_eos=True).usage.completion_tokens == 3
        server.signal()  # a second one stops at once
        assert server.wait(timeout=20) == 0


def test_drain_timeout():
    """A call that takes longer than the drain may is ended, and told so."""
    with Server(checkpoints.medium(), "--drain_timeout=100ms") as server:
        stream = server.client.stream([1, 2, 3], max_tokens=1000)
        deltas = iter(stream)
        next(deltas)
        server.signal()
        with pytest.raises(RpcError) as caught:
            list(deltas)
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        assert server.wait() == 0


def test_a_second_signal_stops_at_once():
    with Server(checkpoints.medium(), "--drain_timeout=10m") as server:
        stream = server.client.stream([1, 2, 3], max_tokens=1000)
        deltas = iter(stream)
        next(deltas)
        server.signal()
        server.log.wait_for("draining")
        server.signal()
        with pytest.raises(RpcError) as caught:
            list(deltas)
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        assert stream.end is None
        assert server.wait() == 0


def test_idle_connections_do_not_hold_the_server():
    with Server(checkpoints.small()) as server:
        Watch(server).wait_for(SERVING)
        with grpc.insecure_channel(server.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=30)
            server.signal()
            assert server.wait(timeout=10) == 0
