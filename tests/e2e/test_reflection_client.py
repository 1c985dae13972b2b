"""A client that has seen no .proto file: it asks the server what the API is."""

import grpc
import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "ddl.v1.InferenceService"
REQUEST = {
    "requestId": "by-reflection",
    "prompt": {"text": "The quick brown fox"},
    "sampling": {"temperature": 1, "seed": "11"},
    "stopping": {"maxTokens": 40, "ignoreEos": True},
}


class ReflectedService:
    """The methods of a gRPC service, called with and answering JSON-like dictionaries."""

    def __init__(self, channel, name):
        self._channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(self.database)
        self._service = pool.FindServiceByName(name)

    def call(self, method, request, timeout=60):
        """Yields the responses: one of a unary method."""
        method = self._service.methods_by_name[method]
        request_class = message_factory.GetMessageClass(method.input_type)
        response_class = message_factory.GetMessageClass(method.output_type)
        kind = self._channel.unary_stream if method.server_streaming else self._channel.unary_unary
        function = kind(f"/{self._service.full_name}/{method.name}",
                        request_serializer=request_class.SerializeToString,
                        response_deserializer=response_class.FromString)
        message = json_format.ParseDict(request, request_class())
        answer = function(message, timeout=timeout)
        yield from map(json_format.MessageToDict, answer if method.server_streaming else [answer])


@pytest.fixture
def service(server):
    with grpc.insecure_channel(server.address) as channel:
        yield ReflectedService(channel, SERVICE)


def test_reflection_lists_the_services(service):
    assert set(service.database.get_services()) >= {
        SERVICE, "ddl.v1.ModelService", "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection"}


def test_stream(service):
    events = list(service.call("GenerateStream", REQUEST))
    assert {event["requestId"] for event in events} == {"by-reflection"}
    kinds = [next(key for key in event if key != "requestId") for event in events]
    assert kinds == ["start"] + ["delta"] * (len(events) - 2) + ["end"]

    [unary] = service.call("Generate", REQUEST)
    completion = unary["completions"][0]
    deltas = [event["delta"] for event in events[1:-1]]
    assert len(completion["tokens"]) == 40
    assert "".join(delta.get("text", "") for delta in deltas) == completion["text"]
    assert [token for delta in deltas for token in delta["tokens"]] == completion["tokens"]

    end = events[-1]["end"]
    assert end["usage"] == unary["usage"]
    assert end["completions"] == [
        {key: value for key, value in completion.items() if key not in ("text", "tokens")}]
