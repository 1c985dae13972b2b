"""The files beside a vocabulary, against what Hugging Face's transformers make of them.

scripts/install_dependencies.sh tokenizers puts transformers into .venv/tokenizer-packages.
"""

import json
import os
import sys

import pytest
from hugging_face_parity import ask
from real_tokenizers_parity import PACKAGES
from tokenizer_configurations import byte_level, tokenizer_json
from tokenizer_strings import strings

pytestmark = pytest.mark.skipif(
    not PACKAGES.exists(), reason="the packages are not there: scripts/install_dependencies.sh tokenizers"
)

# "</s>" and "<x>" are in the vocabulary, but are not added tokens.
SPEC = tokenizer_json({
    "special": ["<|endoftext|>", "<s>", "</s>", "<x>"],
    "only_special": ["<|endoftext|>", "<s>"],
    "pre_tokenizer": byte_level(),
    "post_processor": byte_level(),
})
IDS = SPEC["model"]["vocab"]
NEXT = max(IDS.values()) + 1
TEXTS = strings(300, "companions", ["<s>", "</s>", "<x>", "<new>", "<other>", " <s> ", "  <x>  ", " <new>", "<s>a</s><x>"])


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True, **flags}


def named(**more):
    return {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<|endoftext|>", **more}


BOTH = {"add_bos_token": True, "add_eos_token": True}
# What lies beside a tokenizer.json, or beside vocab.json and merges.txt: tokenizer_config.json, special_tokens_map.json,
# added_tokens.json.
COMPANIONS = {
    "none": {},
    "named tokens": {"tokenizer_config": named()},
    "bos and eos asked for": {"tokenizer_config": named(**BOTH)},
    "bos asked for": {"tokenizer_config": named(add_bos_token=True)},
    "eos asked for": {"tokenizer_config": named(add_eos_token=True)},
    "bos switched off": {"tokenizer_config": named(add_bos_token=False)},
    "a map": {"special_tokens_map": named(additional_special_tokens=["<x>"])},
    "a map of tokens with flags": {"special_tokens_map": {"eos_token": token("</s>", lstrip=True), "mask_token": token("<x>", rstrip=True)}},
    "a map that contradicts": {"tokenizer_config": named(), "special_tokens_map": {"eos_token": "<x>"}},
    "a map beside a decoder": {
        "tokenizer_config": named(added_tokens_decoder={IDS["</s>"]: token("</s>")}),
        "special_tokens_map": {"eos_token": "<x>"},
    },
    "a decoder that changes flags": {
        "tokenizer_config": {"added_tokens_decoder": {IDS["<s>"]: token("<s>", lstrip=True, special=False), IDS["<x>"]: token("<x>", rstrip=True)}}
    },
    "a decoder with new tokens": {
        "tokenizer_config": {"added_tokens_decoder": {NEXT: token("<new>", special=False), NEXT + 1: token("<other>", single_word=True)}}
    },
    "added tokens": {"added_tokens": {"<new>": NEXT, "<other>": NEXT + 1}},
    "added tokens, one of them named": {"added_tokens": {"<new>": NEXT}, "tokenizer_config": {"eos_token": "<new>"}},
    "extra special tokens": {"tokenizer_config": {"extra_special_tokens": ["<x>", "</s>"]}},
    "extra special tokens by name": {"tokenizer_config": {"extra_special_tokens": {"image_token": "<x>"}}},
}


@pytest.fixture(scope="module")
def transformers():
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.append(str(PACKAGES))
    sys.modules["torch"] = None  # .venv has only LibTorch of it, which cannot be imported
    try:
        import transformers

        transformers.logging.set_verbosity_error()
        yield transformers
    finally:
        sys.path.remove(str(PACKAGES))
        del sys.modules["torch"]


def write(folder, files, vocabulary):
    if vocabulary == "tokenizer.json":
        (folder / "tokenizer.json").write_text(json.dumps(SPEC), encoding="utf-8")
    else:
        (folder / "vocab.json").write_text(json.dumps(IDS), encoding="utf-8")
        merges = (" ".join(merge) for merge in SPEC["model"]["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "vocab.json"])
@pytest.mark.parametrize("name", COMPANIONS)
def test_companions(name, vocabulary, tmp_path, transformers):
    write(tmp_path, COMPANIONS[name], vocabulary)
    kind = transformers.PreTrainedTokenizerFast if vocabulary == "tokenizer.json" else transformers.GPT2Tokenizer
    theirs = kind.from_pretrained(tmp_path)
    for how, options in (
        ("text", {"add_special_tokens": False}),
        ("special", {"add_special_tokens": True}),
        ("plain", {"add_special_tokens": False, "split_special_tokens": True}),
    ):
        answers = ask(tmp_path, TEXTS if how == "text" else [{how: text} for text in TEXTS])
        for text, answer in zip(TEXTS, answers, strict=True):
            assert answer.get("ids") == theirs(text, **options)["input_ids"], (how, text, answer)
    sequences = [answer["ids"] for answer in ask(tmp_path, TEXTS)]
    for ids, answer in zip(sequences, ask(tmp_path, sequences), strict=True):
        assert answer["skipped"] == theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), ids
