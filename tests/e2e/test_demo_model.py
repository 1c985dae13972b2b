"""The bundled model says what the training code, an implementation of its own, computed for it."""

import json

import numpy
import pytest

from ddl_client import vectors
from server_process import ROOT, Server

MODEL = ROOT / "models" / "ddl-demo"
EXPECTED = json.loads((MODEL / "expected.json").read_text())
# expected.json holds 5 decimals, of float32 computations in another order.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def server():
    with Server(MODEL, "--dtype=float32") as running:
        yield running


@pytest.mark.parametrize("case", EXPECTED["greedy"], ids=lambda case: case["prompt"])
def test_greedy(server, case):
    response = server.client.generate(case["prompt"], max_tokens=len(case["ids"]), temperature=0)
    assert response.usage.prompt_tokens == len(case["prompt_ids"])
    completion = response.completions[0]
    assert [token.token_id for token in completion.tokens] == case["ids"]
    assert completion.text == case["text"]
    stream = server.client.stream(case["prompt_ids"], max_tokens=len(case["ids"]), temperature=0)
    assert "".join(delta.text for delta in stream) == case["text"]


def test_hidden(server):
    expected = EXPECTED["hidden"]
    [tokens] = server.client.tokenize([expected["text"]])
    assert [token.id for token in tokens] == expected["ids"]
    response = server.client.embed([expected["text"]], pooling="none", normalize=False)
    numpy.testing.assert_allclose(vectors(response)[0], expected["vectors"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_are_what_decoding_reports(dtype):
    """To the bit, in either type, and for tokens that were sampled in a batch with others."""
    with Server(MODEL, f"--dtype={dtype}") as server:
        response = server.client.generate(
            "It was a fine morning, and", temperature=1, seed=3, n=3, max_tokens=60,
            ignore_eos=True, logprobs=0, prompt_logprobs=0)
        prompt = list(response.prompt_tokens)
        decoded = [prompt + list(each.tokens) for each in response.completions]
        scored = server.client.score([[token.token_id for token in each] for each in decoded])
        for score, tokens in zip(scored.scores, decoded):
            assert [token.logprob for token in score.tokens] == [token.logprob for token in tokens]


def test_flags_are_not_needed():
    """As `make demo` starts it: bfloat16, and whatever the defaults are."""
    with Server(MODEL, "--threads=0") as server:
        model = server.client.model_info()
        assert (model.name, model.variant, model.dtype) == ("ddl-demo", "ccec", "bfloat16")
        completion = server.client.generate("She was", max_tokens=30, seed=1).completions[0]
        assert completion.text.strip()
