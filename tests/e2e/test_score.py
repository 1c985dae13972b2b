"""Scores are the model's: what the official code's log softmax gives, over all of the embedding's rows."""

import json
import shutil
import sys

import numpy
import pytest

from ddl_client import RpcError
from server_process import ROOT, Server

sys.path.append(str(ROOT / "tests" / "oracle"))
from ddl_numpy import read_safetensors  # noqa: E402

CASE = ROOT / "tests" / "data" / "goldens" / "ccec_base"  # 256 rows
TOKENS = 200  # of the tokenizer; the ids from there on are padding


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A server on a golden checkpoint whose tokenizer has fewer tokens than the embedding has rows."""
    folder = tmp_path_factory.mktemp("padded") / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(CASE / name, folder / name)
    # One token a character of the byte-level alphabet, without merges.
    alphabet = [chr(c) for c in range(33, 127)] + [chr(c) for c in range(161, 173)] + [chr(c) for c in range(174, 268)]
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "added_tokens": [], "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(alphabet[:TOKENS])}, "merges": []}}))
    with Server(folder, "--dtype=float32") as server:
        yield server


def official(ids):
    """Log-probabilities of ids[1:] by the official code's logits."""
    gold = read_safetensors(CASE / "golden.safetensors")
    row = [list(map(int, each)) for each in gold["input_ids"]].index(ids)
    logits = gold["logits"][row].astype(numpy.float64)
    logsumexp = numpy.log(numpy.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    return [logits[i, ids[i + 1]] - logsumexp[i] for i in range(len(ids) - 1)], logits


def prompts():
    gold = read_safetensors(CASE / "golden.safetensors")
    return [list(map(int, each)) for each in gold["input_ids"]]


def test_scores_normalise_over_padding_rows_too(padded):
    checked = 0
    for ids in prompts():
        last = next((i for i, token in enumerate(ids) if i > 0 and token >= TOKENS), len(ids))
        expected, logits = official(ids)
        [score] = padded.client.score([ids[:last]]).scores
        found = [token.logprob for token in score.tokens if token.HasField("logprob")]
        numpy.testing.assert_allclose(found, expected[:last - 1], rtol=0, atol=1e-4)
        # Over the tokenizer's ids alone it would be another number.
        narrow = numpy.log(numpy.exp(logits[:, :TOKENS]).sum(-1))
        wide = numpy.log(numpy.exp(logits).sum(-1))
        assert numpy.abs(wide - narrow).max() > 0.01
        checked += last - 1
    assert checked > 0


def test_a_completions_logprobs_are_the_same_numbers(padded):
    ids = [token for token in prompts()[0] if token < TOKENS][:4]
    completion = padded.client.generate(ids, max_tokens=8, temperature=0.9, seed=3, logprobs=0).completions[0]
    sampled = [token.token_id for token in completion.tokens]
    assert max(sampled) < TOKENS
    [score] = padded.client.score([ids + sampled]).scores
    scored = [token.logprob for token in score.tokens][-len(sampled):]
    numpy.testing.assert_allclose([token.logprob for token in completion.tokens], scored, rtol=0, atol=1e-5)


def test_padding_rows_are_never_drawn(padded):
    for seed in range(20):
        completion = padded.client.generate([5], max_tokens=16, temperature=2.0, seed=seed).completions[0]
        assert all(token.token_id < TOKENS for token in completion.tokens)


@pytest.mark.parametrize("ids, field", [([5, TOKENS, 6], "inputs[0].token_ids.ids[1]"), ([TOKENS - 1, 6, 255], "inputs[0].token_ids.ids[2]")])
def test_scoring_a_padding_row_is_invalid(padded, ids, field):
    with pytest.raises(RpcError) as caught:
        padded.client.score([ids])
    assert caught.value.code.name == "INVALID_ARGUMENT"
    [(name, description)] = caught.value.violations
    assert name == field and "padding" in description and str(TOKENS) in description


def test_padding_rows_may_be_what_a_score_starts_from(padded):
    [score] = padded.client.score([[TOKENS, 5, 6]]).scores
    assert len(score.tokens) == 3
