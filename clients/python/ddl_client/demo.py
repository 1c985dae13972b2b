"""Shows a running server at work: a completion token by token, embeddings, the metrics that moved."""

import sys
import time
import urllib.error

import numpy

from ddl_client.client import Client, vectors

PROMPT = "It was a fine morning, and"
MAX_TOKENS = 64
SEED = 7
SENTENCES = (
    "She was very happy to see her sister again.",
    "Her sister's arrival gave her the greatest pleasure.",
    "The carriage was at the door before dinner was over.",
    "They drove to town in the new carriage after dinner.",
)
# What the demo must have moved, or it has shown nothing; of all that moves, this is what it shows.
METRICS = ("ddl_requests_total", "ddl_prompt_tokens_total", "ddl_generated_tokens_total",
           "ddl_time_to_first_token_seconds_count", "ddl_inter_token_latency_seconds_count",
           "ddl_step_duration_seconds_count")
MAX_METRIC_LINES = 10


class DemoError(Exception):
    """The server answered, but not with what it should."""


def run(address, metrics_address, prompt=PROMPT, output=sys.stdout):
    """Runs the demo; RpcError, DemoError or an OSError of the metrics page if something fails."""
    try:
        from ddl_client import metrics
    except ImportError as error:
        raise DemoError(f"{error}: pip install 'ddl-client[demo]'") from error

    def show(*words, **options):
        print(*words, **options, file=output, flush=True)

    with Client(address, timeout=60) as client:
        client.health()  # fails at once where nobody listens
        client.wait_until_serving(timeout=60)
        before = metrics.scrape(metrics_address)
        show_model(client, show)
        tokens = show_completion(client, prompt, show)
        show_similarities(client, show)
        show_changes(metrics.changes(before, metrics.scrape(metrics_address)), tokens, show)


def show_model(client, show):
    model = client.model_info()
    show(f"\n== The model\n{model.name}: {model.variant}, {model.num_layers} layers, width "
         f"{model.hidden_size}, {model.value_channels} value channels, "
         f"{model.parameter_count / 1e6:.1f} M parameters, {model.dtype} on {model.device}, "
         f"context {model.max_context_length} tokens")


def show_completion(client, prompt, show):
    """Streams a completion with a bar between tokens; returns how many tokens came."""
    show(f"\n== A completion, token by token (seed {SEED})\n{prompt}", end="")
    started = time.monotonic()
    first = None
    tokens = 0
    stream = client.stream(prompt, max_tokens=MAX_TOKENS, temperature=0.7, seed=SEED)
    for delta in stream:
        first = first or time.monotonic()
        tokens += len(delta.tokens)
        show("|" + delta.text.replace("\n", "\\n"), end="")
    ended = time.monotonic()
    if not tokens or tokens != stream.end.usage.completion_tokens:
        raise DemoError(f"{tokens} tokens came, but the server says it sent "
                        f"{stream.end.usage.completion_tokens}")
    per_second = (tokens - 1) / (ended - first) if tokens > 1 else 0
    show(f"\n({tokens} tokens: the first after {1000 * (first - started):.0f} ms, then "
         f"{per_second:.0f} a second)")
    return tokens


def show_similarities(client, show):
    show("\n== Cosine similarities of sentences")
    rows = numpy.concatenate(vectors(client.embed(SENTENCES, pooling="mean")))
    if not numpy.allclose(numpy.linalg.norm(rows, axis=1), 1, atol=1e-3):
        raise DemoError("the embeddings are not of length 1")
    for line in similarity_table(rows, SENTENCES):
        show(line)


def similarity_table(rows, texts):
    """Yields the lines of a table of the cosines between `rows` [texts, dimensions]."""
    rows = rows / numpy.linalg.norm(rows, axis=1, keepdims=True)
    similarities = rows @ rows.T
    yield "      " + "".join(f"{f'({i})':>7}" for i in range(1, len(texts) + 1))
    for i, (text, similarity) in enumerate(zip(texts, similarities), 1):
        yield f"{f'({i})':<6}" + "".join(f"{value:7.3f}" for value in similarity) + f"   {text}"


def show_changes(changes, tokens, show):
    show(f"\n== On /metrics, of {len(changes)} series that moved")
    shown = [change for name in METRICS for change in changes
             if change.name == name and 'method="GetModelInfo"' not in change.labels]
    for change in shown[:MAX_METRIC_LINES]:
        labels = ",".join(label for label in change.labels.split(",")
                          if not label.startswith("model="))
        mean = "" if change.mean is None else f", {1000 * change.mean:.3g} ms on average"
        series = change.name + (f"{{{labels}}}" if labels else "")
        show(f"{series:<62} +{change.after - change.before:g}{mean}")
    moved = {}
    for change in changes:
        moved[change.name] = moved.get(change.name, 0) + change.after - change.before
    still = [name for name in METRICS if name not in moved]
    if still:
        raise DemoError(f"these metrics did not move: {', '.join(still)}")
    if moved["ddl_generated_tokens_total"] != tokens:
        raise DemoError(f"ddl_generated_tokens_total grew by {moved['ddl_generated_tokens_total']:g} "
                        f"after {tokens} tokens")


def describe_os_error(error, metrics_address):
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"cannot read the metrics at {metrics_address}: {reason}"
