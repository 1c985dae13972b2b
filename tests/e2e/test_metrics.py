"""/metrics is well formed, and its numbers are those that the client counts itself."""

import collections
import concurrent.futures
import random
import subprocess

import grpc
import pytest

from ddl_client import RpcError
from server_process import ROOT

PROMTOOL = ROOT / ".venv" / "bin" / "promtool"


class Books:
    """What a client has sent and received."""

    def __init__(self):
        self.requests = collections.Counter()  # (method, code)
        self.prompt_tokens = collections.Counter()  # task
        self.generated_tokens = 0
        self.finished = collections.Counter()  # (task, finish reason)
        self.embed_inputs = 0
        self.inter_token_gaps = 0
        self.more_completions = 0  # than requests
        self.partial_blocks = 0  # positions of prompts that such a completion computes for itself

    def __add__(self, other):
        total = Books()
        for name in vars(total):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def call(self, method, function, *arguments, **parameters):
        try:
            answer = function(*arguments, **parameters)
        except RpcError as error:
            self.requests[method, error.code.name] += 1
            return None
        self.requests[method, "OK"] += 1
        return answer

    def count_completion(self, completion, usage):
        reason = type(completion).DESCRIPTOR.fields_by_name["finish_reason"].enum_type
        name = reason.values_by_number[completion.finish_reason].name
        self.finished["generate", name.removeprefix("FINISH_REASON_").lower()] += 1
        self.prompt_tokens["generate"] += usage.prompt_tokens
        self.generated_tokens += usage.completion_tokens
        self.inter_token_gaps += usage.completion_tokens - 1


def generate(client, books, rng):
    response = books.call(
        "Generate", client.generate, "The lazy dog", max_tokens=rng.randint(1, 40),
        temperature=1, seed=rng.randint(0, 99), stop_token_ids=rng.sample(range(256), 3))
    books.count_completion(response.completions[0], response.usage)
    assert len(response.completions[0].tokens) == response.usage.completion_tokens


def stream(client, books, rng):
    def read():
        call = client.stream("A rewrite of the state", max_tokens=rng.randint(1, 40), temperature=1,
                             seed=rng.randint(0, 99), stop=["e"], stream_interval=rng.randint(1, 4))
        return sum(len(delta.tokens) for delta in call), call.end

    tokens, end = books.call("GenerateStream", read)
    assert tokens == end.usage.completion_tokens
    books.count_completion(end.completions[0], end.usage)


def fill_the_context(client, books, rng):
    prompt = [rng.randint(0, 255) for _ in range(505)]
    response = books.call("Generate", client.generate, prompt, ignore_eos=True)
    assert response.usage.completion_tokens == 512 - 505
    books.count_completion(response.completions[0], response.usage)


def embed(client, books, rng):
    inputs = [[rng.randint(0, 255) for _ in range(rng.randint(1, 60))]
              for _ in range(rng.randint(1, 5))]
    response = books.call("Embed", client.embed, inputs)
    assert response.usage.prompt_tokens == sum(map(len, inputs))
    books.embed_inputs += len(inputs)
    books.prompt_tokens["embed"] += response.usage.prompt_tokens
    books.finished["embed", "stop"] += 1


def score(client, books, rng):
    inputs = [[rng.randint(0, 255) for _ in range(rng.randint(1, 60))]
              for _ in range(rng.randint(1, 5))]
    response = books.call("Score", client.score, inputs)
    assert response.usage.prompt_tokens == sum(map(len, inputs))
    books.prompt_tokens["score"] += response.usage.prompt_tokens
    books.finished["score", "stop"] += 1


def several(client, books, rng):
    response = books.call("Generate", client.generate, "The lazy dog", n=3, max_tokens=12, echo=True,
                          ignore_eos=True, seed=rng.randint(0, 99))
    books.count_completion(response.completions[0], response.usage)
    books.inter_token_gaps -= 2  # counted as one completion
    books.more_completions += 2
    books.partial_blocks += 2 * response.usage.prompt_tokens  # fewer than a block


def refused(client, books, rng):
    books.call("Generate", client.generate, "text", temperature=5)
    books.call("Generate", client.generate, "text", model="nobody")
    books.call("Embed", client.embed, ["text"], dimensions=10**6)
    books.call("GenerateStream", lambda: list(client.stream([], max_tokens=3)))


def other(client, books, rng):
    books.call("Tokenize", client.tokenize, ["some text"])
    books.call("Detokenize", client.detokenize, [[1, 2, 3]])
    books.call("ListModels", client.list_models)
    books.call("GetModelInfo", client.model_info)
    books.call("GetServerInfo", client.server_info)
    client.health()  # Not counted.


@pytest.fixture(scope="module")
def mixed_traffic(server):
    """The client's books and the scrape after a few hundred calls of all kinds, 8 at a time."""
    assert server.scrape().by("code", "ddl_requests_total") == {}
    kinds = ([generate, stream, embed, score] * 40
             + [fill_the_context, several, refused, other] * 5)

    def run(number):
        books = Books()
        kinds[number](server.client, books, random.Random(number))
        return books

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        books = sum(pool.map(run, range(len(kinds))), Books())
    return books, server.wait_until_idle()


def by(scrape, name, *labels, **fixed):
    """{values of the labels: value} of the series that are not zero."""
    found = collections.Counter()
    for sample in scrape.samples:
        if sample.name == name and sample.value and fixed.items() <= sample.labels.items():
            found[tuple(sample.labels[label] for label in labels)] += sample.value
    return found


def test_requests_by_method_and_code(mixed_traffic):
    books, scrape = mixed_traffic
    assert by(scrape, "ddl_requests_total", "method", "code") == books.requests
    assert by(scrape, "ddl_request_duration_seconds_count", "method", "code") == books.requests


def test_unknown_models_share_one_label(mixed_traffic):
    _, scrape = mixed_traffic
    assert by(scrape, "ddl_requests_total", "code", model="unknown") == {("NOT_FOUND",): 5}


def test_tokens(mixed_traffic):
    books, scrape = mixed_traffic
    assert scrape.by("task", "ddl_prompt_tokens_total", source="computed") == books.prompt_tokens
    assert scrape.value("ddl_generated_tokens_total") == books.generated_tokens
    assert scrape.value("ddl_wasted_tokens_total") == 0


def test_finish_reasons(mixed_traffic):
    books, scrape = mixed_traffic
    assert by(scrape, "ddl_request_finished_total", "task", "finish_reason") == books.finished
    assert books.finished.keys() >= {("generate", "stop"), ("generate", "length"),
                                     ("generate", "context"), ("embed", "stop")}


def test_histograms(mixed_traffic):
    books, scrape = mixed_traffic
    completions = sum(count for (task, _), count in books.finished.items() if task == "generate")
    embeds = books.finished["embed", "stop"]
    by_task = {"generate": completions, "embed": embeds, "score": books.finished["score", "stop"]}
    for name in ("ddl_request_queue_seconds", "ddl_request_prefill_seconds",
                 "ddl_request_prompt_tokens"):
        assert scrape.by("task", name + "_count") == by_task, name
    assert scrape.by("task", "ddl_request_prompt_tokens_sum") == books.prompt_tokens
    assert scrape.value("ddl_request_generated_tokens_count", task="generate") == completions
    assert scrape.value("ddl_request_generated_tokens_sum") == books.generated_tokens
    first_tokens = completions + books.more_completions
    assert scrape.value("ddl_time_to_first_token_seconds_count") == first_tokens
    assert scrape.value("ddl_inter_token_latency_seconds_count") == books.inter_token_gaps
    assert scrape.value("ddl_embed_inputs_per_request_count") == embeds
    assert scrape.value("ddl_embed_inputs_per_request_sum") == books.embed_inputs


def test_steps(mixed_traffic):
    books, scrape = mixed_traffic
    # Each position once: the prompts, and every generated token but each completion's last.
    positions = (sum(books.prompt_tokens.values()) + books.inter_token_gaps + books.partial_blocks
                 + scrape.value("ddl_wasted_tokens_total", reason="preempt_recompute"))
    assert scrape.value("ddl_step_tokens_sum") == positions
    steps = scrape.value("ddl_step_duration_seconds_count")
    assert scrape.value("ddl_step_batch_size_count") == steps
    assert scrape.value("ddl_scheduler_duration_seconds_count") == steps
    assert scrape.value("ddl_model_duration_seconds_count") == steps
    assert 0 < scrape.value("ddl_model_duration_seconds_sum") < scrape.value("ddl_step_duration_seconds_sum")
    assert scrape.value("ddl_engine_last_step_timestamp_seconds") > 1.6e9


def test_gauges_return_to_zero(mixed_traffic):
    _, scrape = mixed_traffic
    assert scrape.busy() == {}
    assert scrape.value("ddl_kv_blocks", state="free") > 0
    assert scrape.value("ddl_server_ready") == 1
    assert scrape.value("ddl_server_draining") == 0


def test_constant_series(mixed_traffic):
    _, scrape = mixed_traffic
    [info] = [sample for sample in scrape.samples if sample.name == "ddl_model_info"]
    assert info.value == 1
    assert info.labels.keys() >= {"model", "variant", "dtype", "device", "instruction_set", "weights_sha256"}
    assert (info.labels["variant"], info.labels["dtype"]) == ("ccec", "float32")
    assert len(info.labels["weights_sha256"]) == 64
    [build] = [sample for sample in scrape.samples if sample.name == "ddl_build_info"]
    assert build.value == 1
    assert build.labels.keys() >= {"version", "libtorch", "grpc", "cuda"}
    assert scrape.value("process_resident_memory_bytes") > 1e6
    assert scrape.value("process_cpu_seconds_total") > 0


def test_promtool_finds_nothing_to_complain_about(mixed_traffic):
    _, scrape = mixed_traffic
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=scrape.text, text=True,
                             capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_nothing_of_the_requests_is_in_the_labels(mixed_traffic):
    _, scrape = mixed_traffic
    values = {value for sample in scrape.samples for value in sample.labels.values()}
    assert not any("lazy dog" in value or "nobody" in value for value in values)


def test_a_deadline_that_has_passed_is_counted(server):
    before = server.wait_until_idle()
    with pytest.raises(RpcError) as error:
        server.client.generate("text", max_tokens=400, ignore_eos=True, timeout=0.002)
    assert error.value.code == grpc.StatusCode.DEADLINE_EXCEEDED
    after = server.wait_until_idle()
    grown = after.value("ddl_generated_tokens_total") - before.value("ddl_generated_tokens_total")
    wasted = after.value("ddl_wasted_tokens_total") - before.value("ddl_wasted_tokens_total")
    assert grown == wasted < 400
