"""The error table: codes, messages and google.rpc details."""

import grpc
import pytest
from ddl.v1 import inference_pb2, inference_pb2_grpc
from google.protobuf import duration_pb2

import checkpoints
from ddl_client import RpcError, generate_request
from server_process import ROOT, Server

CONTEXT = 512


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def failure(method, request):
    """The error that a call must end with."""
    with pytest.raises(grpc.RpcError) as caught:
        answer = method(request, timeout=60)
        if not isinstance(request, bytes) and not hasattr(answer, "DESCRIPTOR"):
            list(answer)
    return RpcError.from_grpc(caught.value)


def generate(edit, prompt="some text"):
    request = generate_request(prompt, max_tokens=4)
    edit(request)
    return "Generate", request


def embed(edit, *inputs):
    request = inference_pb2.EmbedRequest(inputs=[inference_pb2.Input(text=text) for text in inputs])
    edit(request)
    return "Embed", request


def set_field(path, value):
    """A function that sets a field of a message, given as a path: "sampling.temperature"."""
    *parents, name = path.split(".")

    def edit(message):
        for parent in parents:
            message = getattr(message, parent)
        field = getattr(message, name)
        if hasattr(field, "CopyFrom"):
            field.CopyFrom(value)
        elif hasattr(field, "extend"):
            field.extend(value)
        elif hasattr(field, "update"):
            field.update(value)
        else:
            setattr(message, name, value)

    return edit


def nothing(message):
    del message


# path of the field, value: the violation must name the field, the allowed range and the value.
INVALID_GENERATE = [
    ("sampling.temperature", -0.5, ["0...2", "-0.5"]),
    ("sampling.temperature", 2.5, ["0...2", "2.5"]),
    ("sampling.temperature", float("nan"), ["0...2", "nan"]),
    ("sampling.top_p", 0.0, ["0", "1"]),
    ("sampling.top_p", 1.5, ["1", "1.5"]),
    ("sampling.top_k", 0, ["-1", "0"]),
    ("sampling.top_k", -2, ["-1", "-2"]),
    ("sampling.min_p", 1.5, ["0...1", "1.5"]),
    ("sampling.repetition_penalty", 0.0, ["more than 0", "0"]),
    ("sampling.repetition_penalty", float("inf"), ["finite", "inf"]),
    ("sampling.frequency_penalty", -2.5, ["-2...2", "-2.5"]),
    ("sampling.presence_penalty", float("nan"), ["-2...2", "nan"]),
    ("sampling.logit_bias", {384: 1.0}, ["384"]),
    ("sampling.logit_bias", {1: 101.0, 7: -101.0}, ["-100...100", "101"]),
    ("sampling.n", 0, ["1...16", "0"]),
    ("sampling.n", 17, ["1...16", "17"]),
    ("logprobs.prompt_logprobs", 21, ["0...20", "21"]),
    ("stopping.max_tokens", 0, ["at least 1", "0"]),
    ("stopping.min_tokens", 9, ["4", "9"]),
    ("stopping.stop_token_ids", [384], ["384"]),
    ("logprobs.logprobs", 21, ["0...20", "21"]),
    ("stream_interval", 0, ["at least 1", "0"]),
    ("queue_timeout", duration_pb2.Duration(seconds=-1), ["0s", "-1s"]),
    ("priority", 77, ["Priority", "77"]),
    ("prompt", inference_pb2.Input(), ["text", "token_ids"]),
    ("prompt", inference_pb2.Input(text=""), ["1", "0"]),
    ("prompt", inference_pb2.Input(token_ids=inference_pb2.TokenIds()), ["1", "0"]),
    ("prompt", inference_pb2.Input(token_ids=inference_pb2.TokenIds(ids=[1, 384])), ["384"]),
    ("prompt", inference_pb2.Input(token_ids=inference_pb2.TokenIds(ids=[2**32 - 1])),
     ["384", "4294967295"]),
    ("prompt", inference_pb2.Input(token_ids=inference_pb2.TokenIds(ids=[1] * CONTEXT)),
     ["511", "512", "truncation.truncate"]),
]


@pytest.mark.parametrize("path,value,words", INVALID_GENERATE,
                         ids=lambda value: str(value)[:40].replace("\n", " "))
@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
def test_invalid_generate(stub, method, path, value, words):
    _, request = generate(set_field(path, value))
    error = failure(getattr(stub, method), request)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    [(field, description)] = error.violations
    assert field.startswith(path)
    for word in words:
        assert word in description, description
    assert field in error.message


def test_stop_must_not_be_empty(stub):
    _, request = generate(set_field("stopping.stop", ["fine", ""]))
    assert failure(stub.Generate, request).violations[0][0] == "stopping.stop[1]"


def test_every_mistake_is_named(stub):
    request = generate_request("text", temperature=3, top_p=2, max_tokens=0)
    assert {field for field, _ in failure(stub.Generate, request).violations} == {
        "sampling.temperature", "sampling.top_p", "stopping.max_tokens"}


INVALID_EMBED = [
    ("inputs", nothing, (), ["1...512", "0"]),
    ("inputs", nothing, ("x",) * 513, ["1...512", "513"]),
    ("inputs[1]", nothing, ("x", ""), ["1", "0"]),
    ("params.dimensions", set_field("params.dimensions", 65), ("x",), ["1...64", "65"]),
    ("params.dimensions", set_field("params.dimensions", 0), ("x",), ["1...64", "0"]),
    ("params.pooling", set_field("params.pooling", 99), ("x",), ["Pooling", "99"]),
    ("params.layer", set_field("params.layer", 2), ("x",), ["-2...1", "2"]),
    ("params.layer", set_field("params.layer", -3), ("x",), ["-2...1", "-3"]),
    ("params.readout", set_field("params.readout", 99), ("x",), ["DdlReadout", "99"]),
    ("params.channel", set_field("params.channel", 0), ("x",), ["DDL_READOUT_CHANNEL", "0"]),
    ("params.encoding_format", set_field("params.encoding_format", 99), ("x",), ["99"]),
    ("params.truncation.max_tokens", set_field("params.truncation.max_tokens", 0), ("x",),
     ["at least 1"]),
    ("inputs[0]", nothing, ("word " * 999,), ["(the context)", "params.truncation.truncate"]),
    ("inputs[0]", set_field("params.truncation.max_tokens", 2), ("word " * 9,),
     ["1...2", "(params.truncation.max_tokens)", "params.truncation.truncate"]),
]


@pytest.mark.parametrize("path,edit,inputs,words", INVALID_EMBED,
                         ids=[f"{row[0]}-{i}" for i, row in enumerate(INVALID_EMBED)])
def test_invalid_embed(stub, path, edit, inputs, words):
    _, request = embed(edit, *inputs)
    error = failure(stub.Embed, request)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    [(field, description)] = error.violations
    assert field.startswith(path)
    for word in words:
        assert word in description, description


NEUTRAL = {"sampling.min_p": 0.0, "sampling.repetition_penalty": 1.0, "sampling.n": 1,
           "sampling.frequency_penalty": 0.0, "sampling.presence_penalty": 0.0}


@pytest.mark.parametrize("path", NEUTRAL)
def test_neutral_values_are_accepted(stub, path):
    _, request = generate(set_field(path, NEUTRAL[path]))
    assert stub.Generate(request, timeout=60).usage.completion_tokens


@pytest.mark.parametrize("call", [
    lambda client: client.generate("text", model="nobody"),
    lambda client: list(client.stream("text", model="nobody")),
    lambda client: client.embed(["text"], model="nobody"),
    lambda client: client.score(["text"], model="nobody"),
    lambda client: client.tokenize(["text"], model="nobody"),
    lambda client: client.detokenize([[1]], model="nobody"),
    lambda client: client.model_info("nobody")],
    ids=["Generate", "GenerateStream", "Embed", "Score", "Tokenize", "Detokenize", "GetModelInfo"])
def test_unknown_model(server, client, call):
    with pytest.raises(RpcError) as caught:
        call(client)
    assert caught.value.code == grpc.StatusCode.NOT_FOUND
    assert "nobody" in caught.value.message
    assert client.model_info().name in caught.value.message


@pytest.mark.parametrize("method,field", [
    ("Generate", b"\x1a\x04\x0a\x02\xc3("),  # prompt.text
    ("Embed", b"\x1a\x04\x0a\x02\xc3("),  # inputs[0].text
    ("Tokenize", b"\x12\x02\xc3("),  # texts[0]
    ("Generate", b"\x1a\x03\x0a\x01a\x2a\x04\x1a\x02\xc3("),  # stopping.stop[0]
], ids=["prompt.text", "inputs.text", "texts", "stopping.stop"])
def test_text_that_is_not_utf8(server, method, field):
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/ddl.v1.InferenceService/{method}")
        error = failure(call, field)
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT
    [(_, description)] = error.violations
    assert "UTF-8" in description


def test_bytes_that_are_no_message(server):
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary("/ddl.v1.InferenceService/Generate")
        error = failure(call, b"\xff\xff\xff\xff")
    assert error.code == grpc.StatusCode.INVALID_ARGUMENT


def test_unknown_method(server):
    with grpc.insecure_channel(server.address) as channel:
        error = failure(channel.unary_unary("/ddl.v1.InferenceService/Dream"), b"")
    assert error.code == grpc.StatusCode.UNIMPLEMENTED


def test_deadline(client):
    with pytest.raises(RpcError) as caught:
        client.generate("text", max_tokens=500, ignore_eos=True, timeout=0.001)
    assert caught.value.code == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("call", [
    lambda client: client.generate("text"), lambda client: list(client.stream("text")),
    lambda client: client.embed(["text"]), lambda client: client.score(["text"]),
    lambda client: client.tokenize(["text"]), lambda client: client.detokenize([[1]]),
    lambda client: client.generate([1], stop="text"), lambda client: client.generate([1], echo=True)],
    ids=["Generate", "GenerateStream", "Embed", "Score", "Tokenize", "Detokenize", "stop", "echo"])
def test_text_without_a_tokenizer(without_tokenizer, call):
    with pytest.raises(RpcError) as caught:
        call(without_tokenizer.client)
    assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
    assert "its folder holds none" in caught.value.message


@pytest.mark.parametrize("call", [
    lambda client: client.generate([1], ddl_stats=["per_layer_beta"]),
    lambda client: client.embed([[1]], ddl_stats=["update_norms"])], ids=["Generate", "Embed"])
def test_statistics_of_a_gpt(call):
    with Server(ROOT / "tests/data/goldens/gpt_base") as server:
        with pytest.raises(RpcError) as caught:
            call(server.client)
    assert caught.value.code == grpc.StatusCode.INVALID_ARGUMENT
    assert [field for field, _ in caught.value.violations] == ["ddl_stats"]


@pytest.fixture(scope="module")
def without_tokenizer():
    with Server(checkpoints.random_checkpoint()) as server:
        yield server


def test_full_queue():
    """One runs, two wait: whoever would exceed a bound is told when to come back."""
    with Server(checkpoints.medium(), "--max_running_sequences=1", "--max_waiting_requests=2",
                "--max_waiting_tokens=100") as server:
        running = server.client.stream([1, 2, 3], max_tokens=900)
        next(iter(running))
        with grpc.insecure_channel(server.address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)

            def queue(prompt_tokens, waiting):
                call = stub.Generate.future(generate_request([1] * prompt_tokens, max_tokens=2))
                server.wait_for_metrics(
                    lambda scrape: scrape.value("ddl_requests_waiting") == waiting)
                return call

            queued = [queue(60, waiting=1)]
            check_refusal(failure(stub.Generate, generate_request([1] * 41)), "TOKENS_FULL")
            queued.append(queue(40, waiting=2))
            assert server.scrape().value("ddl_waiting_tokens") == 100
            check_refusal(failure(stub.Generate, generate_request([1])), "QUEUE_FULL")
            running.cancel()
            assert [call.result().usage.completion_tokens for call in queued] == [2, 2]
        after = server.wait_until_idle()
        assert after.by("reason", "ddl_admission_rejections_total") == {
            "tokens_full": 1, "queue_full": 1}
        assert after.by("code", "ddl_requests_total", method="Generate") == {
            "RESOURCE_EXHAUSTED": 2, "OK": 2}


def check_refusal(error, reason):
    assert error.code == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.reason == reason
    assert error.retry_seconds > 0


def test_too_large_for_the_cache():
    with Server(checkpoints.small(), "--kv_cache_memory=128KiB") as server:
        with pytest.raises(RpcError) as caught:
            server.client.generate(list(range(300)), max_tokens=100)
        assert caught.value.code == grpc.StatusCode.FAILED_PRECONDITION
        assert caught.value.reason == "TOO_LARGE"
        [info] = caught.value.details
        assert int(info.metadata["needed_tokens"]) == 399  # the last token is never computed
        assert 0 < int(info.metadata["available_tokens"]) < 399
        assert server.client.generate(
            [1, 2], max_tokens=3, ignore_eos=True).usage.completion_tokens == 3
        rejections = server.scrape().by("reason", "ddl_admission_rejections_total")
        assert rejections == {"too_large": 1}
