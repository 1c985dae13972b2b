"""Calls of the server's API, with Python values in and protobuf messages out."""

import grpc
import numpy
from ddl.v1 import inference_pb2, inference_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ddl_client.errors import RpcError, raising_rpc_error

# Answers have no bound of their own: the vectors of every token of a long text take megabytes.
_CHANNEL_OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def _input(prompt):
    """`prompt` is text or a sequence of token ids."""
    if isinstance(prompt, str):
        return inference_pb2.Input(text=prompt)
    return inference_pb2.Input(token_ids=inference_pb2.TokenIds(ids=prompt))


def _truncation(truncate, max_tokens=None):
    """`truncate` is None, "right" (drop the end) or "left" (drop the start)."""
    if truncate is None:
        return None
    direction = inference_pb2.TruncationDirection.Value(f"TRUNCATION_DIRECTION_{truncate.upper()}")
    return inference_pb2.Truncation(truncate=True, direction=direction, max_tokens=max_tokens)


def _ddl_stats(names):
    """`names` of the fields of DdlStatsRequest: "per_layer_beta", "per_token_beta", "update_norms"."""
    if not names:
        return None
    return inference_pb2.DdlStatsRequest(**{name: True for name in names})


def generate_request(prompt, *, model="", request_id="", max_tokens=None, min_tokens=None, stop=(),
                     stop_token_ids=(), ignore_eos=False, include_stop_str_in_output=False,
                     temperature=None, top_p=None, top_k=None, min_p=None, repetition_penalty=None,
                     frequency_penalty=None, presence_penalty=None, logit_bias=None, seed=None,
                     n=None, logprobs=None, prompt_logprobs=None, truncate=None, echo=False,
                     priority=None, skip_special_tokens=None, add_special_tokens=None,
                     parse_special_tokens=None, stream_interval=None, use_prefix_cache=None, ddl_stats=()):
    """A GenerateRequest. What is left out is left unset: the server's defaults apply.

    logit_bias: {token id: bias}
    priority: "high", "normal" or "low"
    parse_special_tokens: False takes "<|endoftext|>" and the like in the prompt as text
    ddl_stats: any of "per_layer_beta", "per_token_beta", "update_norms"
    """
    request = inference_pb2.GenerateRequest(
        request_id=request_id,
        model=model,
        prompt=_input(prompt),
        sampling=inference_pb2.SamplingParams(
            temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            repetition_penalty=repetition_penalty, frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty, logit_bias=logit_bias, seed=seed, n=n),
        stopping=inference_pb2.StoppingParams(
            max_tokens=max_tokens, min_tokens=min_tokens,
            stop=[stop] if isinstance(stop, str) else stop, stop_token_ids=stop_token_ids,
            ignore_eos=ignore_eos, include_stop_str_in_output=include_stop_str_in_output),
        truncation=_truncation(truncate),
        echo=echo,
        skip_special_tokens=skip_special_tokens,
        add_special_tokens=add_special_tokens,
        parse_special_tokens=parse_special_tokens,
        stream_interval=stream_interval,
        use_prefix_cache=use_prefix_cache,
        ddl_stats=_ddl_stats(ddl_stats))
    if priority is not None:
        request.priority = inference_pb2.Priority.Value(f"PRIORITY_{priority.upper()}")
    if logprobs is not None:
        request.logprobs.logprobs = logprobs
    if prompt_logprobs is not None:
        request.logprobs.prompt_logprobs = prompt_logprobs
    return request


def vectors(response):
    """The vectors of an EmbedResponse as float32 arrays, one per input, in the inputs' order.

    Each has the shape [1, dimensions], or [tokens, dimensions] with pooling "none".
    """
    return [numpy.stack([_numbers(vector, response.dimensions) for vector in embedding.vectors])
            for embedding in response.embeddings]


def _numbers(vector, dimensions):
    if not vector.raw:
        return numpy.array(vector.values, numpy.float32)
    if len(vector.raw) == 4 * dimensions:
        return numpy.frombuffer(vector.raw, "<f4")
    # bfloat16 is the upper half of a float32.
    return (numpy.frombuffer(vector.raw, "<u2").astype(numpy.uint32) << 16).view(numpy.float32)


class Stream:
    """A completion while it is made: iterate over it, once, for its StreamDelta messages.

    start: the StreamStart, once the first delta has come
    end: the StreamEnd, once the iteration is over
    """

    def __init__(self, call):
        self._call = call
        self.start = None
        self.end = None

    def __iter__(self):
        with raising_rpc_error():
            for response in self._call:
                match response.WhichOneof("event"):
                    case "start":
                        self.start = response.start
                    case "delta":
                        yield response.delta
                    case "end":
                        self.end = response.end

    def cancel(self):
        """Ends the call; an iteration that goes on raises RpcError with CANCELLED."""
        self._call.cancel()


class Client:
    """A connection to one server. Threads may share it. Close it, or use it in a `with`.

    address: host:port
    model: whom the calls ask; empty for the server's default model
    timeout: seconds that a call may take unless it says otherwise; None for no limit
    api_key: for servers that want one; it is sent with every call, so use a channel with TLS
    channel: a grpc.Channel to use in place of a plain-text one to `address`; it stays open
    """

    def __init__(self, address="127.0.0.1:8500", *, model="", timeout=None, api_key=None,
                 channel=None):
        self.address = address
        self.model = model
        self.timeout = timeout
        self._metadata = [("authorization", f"Bearer {api_key}")] if api_key else None
        self._own_channel = grpc.insecure_channel(address, _CHANNEL_OPTIONS) if not channel else None
        self.channel = channel or self._own_channel
        self._inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self._models = inference_pb2_grpc.ModelServiceStub(self.channel)
        self._health = health_pb2_grpc.HealthStub(self.channel)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def close(self):
        if self._own_channel:
            self._own_channel.close()

    def generate(self, prompt, *, timeout=None, **parameters):
        """A whole completion of text or token ids: a GenerateResponse.

        The parameters are those of generate_request.
        """
        request = self._generate_request(prompt, parameters)
        return self._unary(self._inference.Generate, request, timeout)

    def stream(self, prompt, *, timeout=None, **parameters):
        """The same completion as a Stream, which gives each token when it is made."""
        request = self._generate_request(prompt, parameters)
        with raising_rpc_error():
            return Stream(self._inference.GenerateStream(request, timeout=self._timeout(timeout),
                                                         metadata=self._metadata))

    def embed(self, inputs, *, model=None, request_id="", pooling=None, normalize=None,
              dimensions=None, layer=None, readout=None, channel=None, truncate=None,
              max_tokens=None, encoding_format=None, parse_special_tokens=None, ddl_stats=(),
              timeout=None):
        """Vectors of texts or lists of token ids: an EmbedResponse; `vectors` makes arrays of it.

        pooling: "last_token", "mean", "max", "weighted_mean" or "none"; None for the model's own
        layer: whose state is read; negative counts from the end, None is the last
        readout: "final_norm", "compressed", "channel" (with `channel`) or "state_flat"
        parse_special_tokens, ddl_stats: as in generate_request
        truncate: None, "right" or "left": what to drop of an input longer than the context, or
            than max_tokens
        encoding_format: "float", "bytes_f32le" or "bytes_bf16le"
        """
        params = inference_pb2.EmbedParams(
            normalize=normalize, dimensions=dimensions, layer=layer, channel=channel,
            truncation=_truncation(truncate, max_tokens), parse_special_tokens=parse_special_tokens)
        if pooling is not None:
            params.pooling = inference_pb2.Pooling.Value(f"POOLING_{pooling.upper()}")
        if readout is not None:
            params.readout = inference_pb2.DdlReadout.Value(f"DDL_READOUT_{readout.upper()}")
        if encoding_format is not None:
            params.encoding_format = inference_pb2.EncodingFormat.Value(
                f"ENCODING_FORMAT_{encoding_format.upper()}")
        request = inference_pb2.EmbedRequest(
            request_id=request_id, model=self._model(model),
            inputs=[_input(each) for each in inputs], params=params,
            ddl_stats=_ddl_stats(ddl_stats))
        return self._unary(self._inference.Embed, request, timeout)

    def score(self, inputs, *, model=None, request_id="", parse_special_tokens=None, timeout=None):
        """The log-probability of each token of texts or lists of token ids: a ScoreResponse.

        parse_special_tokens: as in generate_request
        """
        request = inference_pb2.ScoreRequest(
            request_id=request_id, model=self._model(model),
            inputs=[_input(each) for each in inputs], parse_special_tokens=parse_special_tokens)
        return self._unary(self._inference.Score, request, timeout)

    def tokenize(self, texts, *, model=None, add_special_tokens=None, parse_special_tokens=None,
                 timeout=None):
        """The tokens of each text: a list of lists of Token (id, bytes, start, end, special).

        parse_special_tokens: as in generate_request
        """
        request = inference_pb2.TokenizeRequest(
            model=self._model(model), texts=texts, add_special_tokens=add_special_tokens,
            parse_special_tokens=parse_special_tokens)
        response = self._unary(self._inference.Tokenize, request, timeout)
        return [list(each.tokens) for each in response.lists]

    def detokenize(self, sequences, *, model=None, skip_special_tokens=None, timeout=None):
        """The text of each list of token ids."""
        request = inference_pb2.DetokenizeRequest(
            model=self._model(model),
            sequences=[inference_pb2.TokenIds(ids=ids) for ids in sequences],
            skip_special_tokens=skip_special_tokens)
        return list(self._unary(self._inference.Detokenize, request, timeout).texts)

    def list_models(self, *, timeout=None):
        """What the server serves: a list of ModelInfo, the default model first."""
        request = inference_pb2.ListModelsRequest()
        return list(self._unary(self._models.ListModels, request, timeout).models)

    def model_info(self, model=None, *, timeout=None):
        """The ModelInfo of one model."""
        request = inference_pb2.GetModelInfoRequest(model=self._model(model))
        return self._unary(self._models.GetModelInfo, request, timeout)

    def server_info(self, *, timeout=None):
        """The server's version and its load now: a ServerInfo."""
        return self._unary(self._models.GetServerInfo, inference_pb2.GetServerInfoRequest(), timeout)

    def health(self, service="", *, timeout=None):
        """"SERVING", "NOT_SERVING" or "UNKNOWN": of one gRPC service, or of the whole server."""
        request = health_pb2.HealthCheckRequest(service=service)
        response = self._unary(self._health.Check, request, timeout)
        return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

    def wait_until_serving(self, service="", *, timeout):
        """Waits until the server is up and ready; RpcError after `timeout` seconds."""
        request = health_pb2.HealthCheckRequest(service=service)
        with raising_rpc_error():
            watch = self._health.Watch(request, timeout=timeout, wait_for_ready=True)
            for response in watch:
                if response.status == health_pb2.HealthCheckResponse.SERVING:
                    watch.cancel()
                    return
        raise RpcError(grpc.StatusCode.UNAVAILABLE, "the server ended the watch of its health")

    def _timeout(self, timeout):
        return self.timeout if timeout is None else timeout

    def _model(self, model):
        return self.model if model is None else model

    def _generate_request(self, prompt, parameters):
        return generate_request(prompt, **{"model": self.model, **parameters})

    def _unary(self, method, request, timeout):
        with raising_rpc_error():
            return method(request, timeout=self._timeout(timeout), metadata=self._metadata)
