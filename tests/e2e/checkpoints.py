"""Checkpoints that tests make: random weights, and a tokenizer trained on a few lines."""

import contextlib
import fcntl
import hashlib
import pathlib
import subprocess
import sys
import tempfile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import server_process

MAKE_CHECKPOINT = server_process.ROOT / "tools" / "make_random_checkpoint.py"
# Checkpoints stay here from one test program to the next.
KEPT = server_process.BUILD / "test-checkpoints"

END_OF_TEXT = "<|endoftext|>"
SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "A rewrite of the state erases what the key points at, then writes the value there.",
    "Streams end when they end: with a stop, at the limit, or at the edge of the context.",
    "Größe, naïveté, 東京 and ☃ take more than one byte a letter.",
]
# Ids past the tokenizer's are padding, as in GPT-2's 50304 rows for 50257 tokens.
VOCAB_SIZE = 384
TOKENIZER_SIZE = 361


def random_checkpoint(*options, tokenizer=None):
    """A folder that tools/make_random_checkpoint.py has written with these options."""
    script = b"".join((MAKE_CHECKPOINT.parent / name).read_bytes()
                      for name in (MAKE_CHECKPOINT.name, "ddl_config.py", "safetensors_writer.py"))
    content = repr(options).encode() + script + (tokenizer or "").encode()
    folder = KEPT / hashlib.sha256(content).hexdigest()[:16]
    with _alone(folder):
        if (folder / "config.json").exists():  # written last
            return folder
        command = [sys.executable, str(MAKE_CHECKPOINT), "--out", str(folder), *options]
        with tempfile.TemporaryDirectory() as temporary:
            if tokenizer:
                path = pathlib.Path(temporary) / "tokenizer.json"
                path.write_text(tokenizer)
                command += ["--tokenizer", str(path)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@contextlib.contextmanager
def _alone(folder):
    """Two test programs may want the same checkpoint at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def trained_tokenizer():
    """tokenizer.json of a byte-level BPE with END_OF_TEXT; the same every time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=TOKENIZER_SIZE, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    assert tokenizer.get_vocab_size() == TOKENIZER_SIZE
    return tokenizer.to_str()


def small():
    """A ccec of 2 layers with a tokenizer and a context of 512 tokens: steps take a millisecond."""
    return random_checkpoint("--hidden-size", "64", "--layers", "2", "--heads", "2", "--head-dim",
                             "32", "--vocab-size", str(VOCAB_SIZE), "--block-size", "512",
                             tokenizer=trained_tokenizer())


def small_tokenizer():
    return Tokenizer.from_file(str(small() / "tokenizer.json"))


def medium():
    """A ccec of 16 M parameters without a tokenizer: a step takes several milliseconds."""
    return random_checkpoint("--hidden-size", "512", "--layers", "6", "--heads", "4", "--head-dim",
                             "128", "--vocab-size", "4096", "--block-size", "1024")


def paper_small():
    """The paper's small ccec: 124 M parameters in bfloat16, no tokenizer; steps take a while."""
    return random_checkpoint("--size", "small", "--dtype", "bfloat16")
