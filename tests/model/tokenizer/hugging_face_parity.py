"""The tokenizer against Hugging Face's tokenizers, on the configurations of today's models.

DDL_TOKENIZER_STRINGS says how many random strings each configuration is tried with, besides the fixed ones.
"""

import itertools
import json
import os
import pathlib
import random
import subprocess
import time

import pytest
import tokenizers
from tokenizer_configurations import CONFIGURATIONS, tokenizer_json
from tokenizer_strings import strings

DRIVER = pathlib.Path(os.environ["DDL_BUILD_DIR"]) / "tests" / "tokenizer_driver"
RANDOM_STRINGS = int(os.environ.get("DDL_TOKENIZER_STRINGS", "400"))


def ask(folder, requests):
    lines = "".join(json.dumps(request) + "\n" for request in requests)
    run = subprocess.run([DRIVER, folder], input=lines.encode(), stdout=subprocess.PIPE, check=True)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(requests)
    return answers


def in_characters(text, spans):
    """Spans of bytes as spans of the characters that they touch; an empty one inside a character ends up after it."""
    owners = [i for i, character in enumerate(text) for _ in range(len(character.encode()))]
    ends = [0, *(owner + 1 for owner in owners)]
    return [(owners[a] if a < b else ends[b], ends[b]) for a, b in zip(spans[::2], spans[1::2])]


def check(folder, spec, seed, count, say):
    theirs = tokenizers.Tokenizer.from_str(json.dumps(spec))
    special = [token["content"] for token in spec["added_tokens"]][:40]
    texts = strings(count, seed, special)
    started, tokens = time.monotonic(), 0
    for kind in ("text", "special", "plain"):
        answers = ask(folder, texts if kind == "text" else [{kind: text} for text in texts])
        theirs.encode_special_tokens = kind == "plain"
        encodings = theirs.encode_batch(texts, add_special_tokens=kind == "special")
        decoded = theirs.decode_batch([encoding.ids for encoding in encodings], skip_special_tokens=False)
        for text, answer, encoding, whole in zip(texts, answers, encodings, decoded, strict=True):
            assert answer.get("ids") == encoding.ids, (text, answer, encoding.tokens)
            assert in_characters(text, answer["spans"]) == encoding.offsets, (text, encoding.tokens)
            assert answer["decoded"] == whole, (text, encoding.tokens)
            assert answer["streamed"] == whole, (text, encoding.tokens)
            tokens += len(encoding.ids)
    seconds = time.monotonic() - started
    theirs.encode_special_tokens = False
    say(f"{len(texts)} strings without special tokens, with them, and with those in the text as text, {tokens} tokens: "
        f"ids, offsets, decoded, streamed ({seconds:.0f} s)")

    chance = random.Random(seed)
    ids = list(itertools.chain(spec["model"]["vocab"].values(), (token["id"] for token in spec["added_tokens"])))
    sequences = [[chance.choice(ids) for _ in range(chance.randint(1, 20))] for _ in range(count)]
    for sequence, answer in zip(sequences, ask(folder, sequences), strict=True):
        whole = theirs.decode(sequence, skip_special_tokens=False)
        assert answer["decoded"] == whole, sequence
        assert answer["streamed"] == whole, sequence
        if all(theirs.id_to_token(id) in special for id in sequence):
            continue  # the library's BPEDecoder panics on no tokens
        assert answer["skipped"] == theirs.decode(sequence, skip_special_tokens=True), sequence


@pytest.fixture
def say(capsys):
    """Prints where ctest's log shows it, also when the test passes."""

    def print_uncaptured(*values):
        with capsys.disabled():
            print("\n ", *values, end="")

    return print_uncaptured


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(name, tmp_path, say):
    spec = tokenizer_json(CONFIGURATIONS[name])
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    check(tmp_path, spec, name, RANDOM_STRINGS, lambda *values: say(f"{name}:", *values))
