"""Classes of characters and normalization forms against Hugging Face's tokenizers, on every code point."""

import json
import os
import re

import pytest
import tokenizers
from hugging_face_parity import ask
from tokenizer_configurations import byte_level, split, words
from tokenizer_strings import CODE_POINTS

ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
BYTES = byte_level(use_regex=False)
CATEGORIES = (
    "L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Cn"
).split()
PATTERNS = [
    *(rf"\p{{{category}}}" for category in CATEGORIES),
    *(rf"[[:{name}:]]" for name in "alpha upper lower punct alnum cntrl blank space word xdigit digit ascii".split()),
    *(r"\w \W \d \D \s \S \h \H [\w] [^\w] [^\S] \p{Han} \p{^Han} \p{Punct} \p{Letter} \p{Any} . (?m:.)".split()),
    r"[\p{L}&&[^\p{Han}]]",
]
# In `make test` those that today's models use.
QUICK = [r"\p{L}", r"\p{N}", r"\p{M}", r"\p{P}", r"\p{S}", r"\p{Lu}", r"\p{Ll}", r"\p{Lo}", r"\w", r"\s", r"\p{Han}"]
if os.environ.get("DDL_TOKENIZER_STRINGS") is None:
    PATTERNS = QUICK
NORMALIZERS = ["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"]
PRE_TOKENIZERS = {
    "Punctuation": {"type": "Punctuation", "behavior": "Removed"},
    "Whitespace": {"type": "Whitespace"},
    "WhitespaceSplit": {"type": "WhitespaceSplit"},
}


def tokenizer_json(pre_tokenizer, normalizer=None, merges=()):
    vocab = {letter: id for id, letter in enumerate(ALPHABET)}
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [list(merge) for merge in merges],
        },
    }


def different(folder, spec, before=""):
    """The code points that come out differently, each after `before`."""
    (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
    theirs = tokenizers.Tokenizer.from_str(json.dumps(spec))

    def differ(groups):
        texts = ["".join(before + chr(c) for c in group) for group in groups]
        pairs = zip(groups, ask(folder, texts), theirs.encode_batch(texts), strict=True)
        return [c for group, answer, encoding in pairs if answer["ids"] != encoding.ids for c in group]

    suspects = differ([CODE_POINTS[i : i + 64] for i in range(0, len(CODE_POINTS), 64)])
    return [f"U+{c:04X}" for c in differ([[c] for c in suspects])]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns(pattern, tmp_path):
    assert different(tmp_path, tokenizer_json(words(split(pattern, "Removed"), BYTES))) == []


@pytest.mark.parametrize("name", NORMALIZERS)
def test_normalizers(name, tmp_path):
    assert different(tmp_path, tokenizer_json(BYTES, {"type": name})) == []


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_pre_tokenizers(name, tmp_path):
    assert different(tmp_path, tokenizer_json(words(PRE_TOKENIZERS[name], BYTES))) == []


def test_digits(tmp_path):
    """Digits removes nothing: whether the letter before merges with a character's first byte tells."""
    merges = [("a", letter) for letter in ALPHABET]
    digits = {"type": "Digits", "individual_digits": True}
    assert different(tmp_path, tokenizer_json(words(digits, BYTES), merges=merges), before="a") == []


@pytest.mark.parametrize("script", ["Latin", "Arabic", "Hiragana", "Emoji"])
def test_scripts_are_those_of_unicode_14(script, tmp_path):
    """A difference that docs/tokenizers.md lists: where it ends, the list needs a change."""
    wrong = different(tmp_path, tokenizer_json(words(split(rf"\p{{{script}}}", "Removed"), BYTES)))
    assert 0 < len(wrong) < 30
    assert all(re.fullmatch(r"U\+[0-9A-F]{4,5}", code_point) for code_point in wrong)
