"""The command line client: python -m ddl_client COMMAND ..., or ddl COMMAND ..."""

import argparse
import json
import os
import pathlib
import sys
import time

import grpc
import numpy

from ddl_client import demo
from ddl_client.client import Client, vectors
from ddl_client.errors import RpcError

DEFAULT_ADDRESS = "127.0.0.1:8500"
DEFAULT_METRICS = "127.0.0.1:9464"


def _token_ids(text):
    return [int(word) for word in text.replace(",", " ").split()]


def _read(text):
    return sys.stdin.read() if text == "-" else text


def build_parser():
    parser = argparse.ArgumentParser(
        prog="ddl_client", description="Calls a Deep Delta Learning inference server.",
        epilog="DDL_API_KEY in the environment is the key for servers that want one. Exit codes: 0 done, 1 the server did not do it (the reason is on stderr), "
               "2 a mistake in the command line.")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--address", default=DEFAULT_ADDRESS, metavar="HOST:PORT",
                        help=f"of the server's gRPC (default {DEFAULT_ADDRESS})")
    shared.add_argument("--model", default="", metavar="NAME", help="default: the server's own default")
    shared.add_argument("--timeout", type=float, default=300, metavar="SECONDS",
                        help="for a call (default 300)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name, run, description):
        command = commands.add_parser(name, parents=[shared], help=description,
                                      description=description)
        command.set_defaults(run=run)
        return command

    generate = add("generate", run_generate, "complete a text, token by token")
    prompt = generate.add_mutually_exclusive_group(required=True)
    prompt.add_argument("prompt", nargs="?", help="text to complete; - reads it from stdin")
    prompt.add_argument("--token-ids", type=_token_ids, metavar="IDS",
                        help="token ids in place of text, such as 1,2,3")
    generate.add_argument("--max-tokens", type=int, metavar="N")
    generate.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    generate.add_argument("--top-p", type=float, metavar="P")
    generate.add_argument("--top-k", type=int, metavar="K")
    generate.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same text")
    generate.add_argument("--n", type=int, metavar="N",
                          help="so many completions, sampled with seed, seed + 1 ...; printed at the end")
    generate.add_argument("--echo", action="store_true", help="print the prompt before the completion")
    generate.add_argument("--stop", action="append", default=[], metavar="TEXT",
                          help="ends the completion; may be given several times")
    generate.add_argument("--no-stream", action="store_true", help="print it all at the end")

    embed = add("embed", run_embed, "print a vector for each text, as a JSON array a line")
    embed.add_argument("texts", nargs="+", metavar="TEXT")
    embed.add_argument("--pooling", choices=["last_token", "mean", "max", "weighted_mean", "none"],
                       help="default: the model's own; none gives a vector per token")
    embed.add_argument("--layer", type=int, metavar="L",
                       help="read the state after this layer; negative counts from the end")
    embed.add_argument("--readout", choices=["final_norm", "compressed", "channel", "state_flat"],
                       help="which vector of the state")
    embed.add_argument("--channel", type=int, metavar="C", help="for --readout channel")
    embed.add_argument("--dimensions", type=int, metavar="K", help="keep the first K numbers")
    embed.add_argument("--no-normalize", action="store_true", help="leave the vectors' length as is")
    embed.add_argument("--similarity", action="store_true",
                       help="print the table of cosine similarities in place of the vectors; for "
                            "one vector a text")

    score = add("score", run_score, "print how probable a text is: mean negative log-likelihood, text")
    score.add_argument("texts", nargs="+", metavar="TEXT")
    score.add_argument("--tokens", action="store_true", help="print each token's log-probability, too")

    tokenize = add("tokenize", run_tokenize, "print the tokens of a text: id, bytes, offsets")
    tokenize.add_argument("text", help="- reads it from stdin")

    add("models", run_models, "list the models that are served")

    health = add("health", run_health, "say whether the server is ready; exits 0 only if it is")
    health.add_argument("service", nargs="?", default="",
                        help="a gRPC service, such as ddl.v1.InferenceService")

    show = add("demo", run_demo, "show a server at work: a stream, embeddings, metrics")
    show.add_argument("--metrics", default=DEFAULT_METRICS, metavar="HOST:PORT",
                      help=f"of the server's /metrics (default {DEFAULT_METRICS})")
    show.add_argument("--prompt", default=demo.PROMPT, metavar="TEXT")

    # Calls no server; its arguments are the converter's own.
    commands.add_parser("convert", add_help=False,
                        help="write a checkpoint as a folder that the server reads; needs ddl-client[convert]")
    return parser


def convert(arguments):
    # The converter's files import each other by name, as beside each other in the repository's tools/.
    sys.path.insert(0, str(pathlib.Path(__file__).parent / "converter"))
    try:
        import convert_checkpoint
    except ImportError as error:
        print(f"ddl convert: {error}. It needs PyTorch: pip install 'ddl-client[convert]'", file=sys.stderr)
        return 1
    return convert_checkpoint.main(arguments, prog="ddl convert")


def run_generate(client, arguments):
    prompt = _read(arguments.prompt) if arguments.token_ids is None else arguments.token_ids
    parameters = dict(
        max_tokens=arguments.max_tokens, temperature=arguments.temperature, top_p=arguments.top_p,
        top_k=arguments.top_k, seed=arguments.seed, stop=arguments.stop, n=arguments.n,
        echo=arguments.echo)
    started = time.monotonic()
    if arguments.no_stream or (arguments.n or 1) > 1:
        response = client.generate(prompt, **parameters)
        usage = response.usage
        for completion in response.completions:
            if completion.index > 0:
                print("\n")
            _print_text(completion.text, completion.tokens)
        completion = response.completions[0]
    else:
        stream = client.stream(prompt, **parameters)
        try:
            for delta in stream:
                _print_text(delta.text, delta.tokens)
        except BaseException:
            print(flush=True)  # What came so far stays readable above the error.
            raise
        completion, usage = stream.end.completions[0], stream.end.usage
    seconds = time.monotonic() - started
    print(flush=True)
    reason = type(completion).DESCRIPTOR.fields_by_name["finish_reason"].enum_type
    reason = reason.values_by_number[completion.finish_reason].name.removeprefix("FINISH_REASON_")
    print(f"[{usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens in "
          f"{seconds:.2f} s, ended by {reason.lower()}, seed {completion.seed}]", file=sys.stderr)
    return 0


def _print_text(text, tokens):
    """A model without a tokenizer has no text: its token ids are shown."""
    if not text and not any(token.token_bytes for token in tokens):
        text = "".join(f"{token.token_id} " for token in tokens)
    print(text, end="", flush=True)


def run_embed(client, arguments):
    response = client.embed(
        arguments.texts, pooling=arguments.pooling, dimensions=arguments.dimensions,
        normalize=False if arguments.no_normalize else None)
    rows = vectors(response)
    if arguments.similarity:
        lines = demo.similarity_table(numpy.concatenate(rows), arguments.texts)
    else:
        lines = (json.dumps([float(number) for number in row]) for each in rows for row in each)
    for line in lines:
        print(line)
    print(f"[{response.usage.prompt_tokens} tokens]", file=sys.stderr)
    return 0


def run_score(client, arguments):
    response = client.score(arguments.texts)
    for score, text in zip(response.scores, arguments.texts):
        print(f"{score.mean_nll:8.4f}  {text}")
        if arguments.tokens:
            for token in score.tokens:
                logprob = f"{token.logprob:9.4f}" if token.HasField("logprob") else " " * 9
                print(f"  {logprob}  {token.token_id:>6}  {token.token_bytes!r}")
    print(f"[{response.usage.prompt_tokens} tokens]", file=sys.stderr)
    return 0


def run_tokenize(client, arguments):
    tokens = client.tokenize([_read(arguments.text)])[0]
    for token in tokens:
        special = "  special" if token.special else ""
        print(f"{token.id:>6}  {token.start:>4}...{token.end:<4}  {token.bytes!r}{special}")
    print(f"[{len(tokens)} tokens]", file=sys.stderr)
    return 0


def run_models(client, arguments):
    for model in client.list_models():
        state = type(model).DESCRIPTOR.fields_by_name["state"].enum_type
        state = state.values_by_number[model.state].name.removeprefix("MODEL_STATE_")
        print(f"{model.name}: {state.lower()}, {model.variant}, {model.num_layers} layers, width "
              f"{model.hidden_size}, {model.parameter_count:,} parameters, {model.dtype} on "
              f"{model.device} ({model.instruction_set}), context {model.max_context_length} tokens")
    return 0


def run_health(client, arguments):
    status = client.health(arguments.service)
    print(status)
    return 0 if status == "SERVING" else 1


def run_demo(client, arguments):
    try:
        demo.run(arguments.address, arguments.metrics, arguments.prompt)
    except OSError as error:
        raise demo.DemoError(demo.describe_os_error(error, arguments.metrics)) from error
    return 0


def describe(error, address):
    """An RpcError as lines for a person."""
    if error.code == grpc.StatusCode.UNAVAILABLE and error.reason is None:
        return f"no server answers at {address} ({error.message})"
    lines = [f"{error.code.name}: {error.message}"]
    lines += [f"  {field}: {description}" for field, description in error.violations
              if description not in error.message]
    if error.reason is not None:
        lines.append(f"  reason: {error.reason}")
    if error.retry_seconds is not None:
        lines.append(f"  try again in {error.retry_seconds:g} s")
    return "\n".join(lines)


def main(arguments=None):
    parser = build_parser()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments[:1] == ["convert"]:
        return convert(arguments[1:])
    arguments = parser.parse_args(arguments)
    if arguments.command == "embed" and arguments.similarity and arguments.pooling == "none":
        parser.error("--similarity compares one vector a text: not with --pooling none")
    try:
        with Client(arguments.address, model=arguments.model, timeout=arguments.timeout,
                    api_key=os.environ.get("DDL_API_KEY")) as client:
            return arguments.run(client, arguments)
    except RpcError as error:
        print(f"ddl_client: {describe(error, arguments.address)}", file=sys.stderr)
    except demo.DemoError as error:
        print(f"ddl_client: {error}", file=sys.stderr)
    except BrokenPipeError:  # Whoever read the output, such as head, has seen enough.
        sys.stderr.close()
    except KeyboardInterrupt:
        return 130
    return 1
