"""train.py as its user runs it: the command, on a small text."""
import json
import pathlib
import random
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch", reason="training needs PyTorch (tools/requirements.txt)")

from tokenizers import Tokenizer

import train
from conftest import ROOT
from ddl_torch import Model

SMALL = ["--hidden-size", "32", "--layers", "2", "--heads", "2", "--head-dim", "16", "--vocab-size", "300", "--contexts",
         "16:0.5,32:0.5", "--batch-tokens", "128", "--micro-tokens", "32", "--steps", "20", "--eval-every", "10", "--warmup", "2"]


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> pathlib.Path:
    rng = random.Random(0)
    words = [w.lower() for w in (ROOT / "LICENSE").read_text().split()]
    docs = [" ".join(rng.choices(words, k=400)) for _ in range(10)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(f"\n{train.END}\n".join(docs))
    return path


def run(*options, code=0):
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "train.py"), *map(str, options)], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_folder_holds_what_a_server_needs(text, tmp_path):
    said = run("--text", text, "--out", tmp_path, *SMALL)
    assert "held-out bits per byte" in said and "tokens/s" in said
    model = Model.load(tmp_path)
    assert model.cfg.variant == "ccec" and model.cfg.block_size == 32 and model.cfg.revision == "d1f7621"
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == model.cfg.vocab_size and tokenizer.token_to_id(train.END) is not None
    sample = "  Any text: naïve, 日本語,\n\ttabs &c. "
    assert tokenizer.decode(tokenizer.encode(sample).ids) == sample
    log = json.loads((tmp_path / "loss.json").read_text())
    assert log["loss"][-1][1] < log["loss"][0][1]  # it learns
    assert log["result"]["held_out_bits_per_byte"] > 0
    assert (tmp_path / "loss.png").stat().st_size > 0


@pytest.mark.parametrize("options, revision, scale, multiplier", [
    (["--revision", "2b55f25", "--set", "mup=true", "--set", "hidden_size_base=64"], "2b55f25", 2, 1),
    (["--set", 'parameterization="completeP"', "--set", "hidden_size_base=64", "--set", "num_hidden_layers_base=1"], "d1f7621", 2, 0.5),
])
def test_trains_either_revision(text, tmp_path, options, revision, scale, multiplier):
    run("--text", text, "--out", tmp_path, *SMALL, *options)
    cfg = Model.load(tmp_path).cfg
    assert (cfg.revision, cfg.logit_scale, cfg.residual_multiplier) == (revision, scale, multiplier)
    log = json.loads((tmp_path / "loss.json").read_text())
    assert log["loss"][-1][1] < log["loss"][0][1]


def test_a_resumed_run_ends_as_one_that_was_not_interrupted(text, tmp_path):
    run("--text", text, "--out", tmp_path / "whole", *SMALL)
    # The other run is stopped at its first evaluation, as by Ctrl-C.
    args = train.parse(["--text", str(text), "--out", str(tmp_path / "half"), *SMALL])
    real_step = train.train_step

    def stop_after_ten(model, optimizer, pool, data, step, context, args):
        if step == 10:
            raise KeyboardInterrupt
        return real_step(model, optimizer, pool, data, step, context, args)

    train.train_step = stop_after_ten
    try:
        assert train.train(args) == 130
    finally:
        train.train_step = real_step
    assert torch.load(tmp_path / "half" / "state.pt", weights_only=True)["step"] == 10
    run("--text", text, "--out", tmp_path / "half", *SMALL, "--resume")
    whole, half = (Model.load(tmp_path / name).state_dict() for name in ("whole", "half"))
    assert all(torch.allclose(whole[k], half[k], atol=1e-3) for k in whole)


def test_no_held_out_document_is_trained_on(text):
    docs = train.documents(text)
    kept, held = train.split(docs, 0.2, seed=3)
    assert sorted(kept + held) == sorted(docs)
    size = sum(map(len, held))
    assert size >= 0.2 * sum(map(len, docs)) > size - max(map(len, held))
    assert train.split(docs, 0.2, seed=3) == (kept, held) != train.split(docs, 0.2, seed=4)


def test_a_text_without_marks_is_cut_at_empty_lines(tmp_path):
    path = tmp_path / "plain.txt"
    paragraphs = [str(i) * 5000 for i in range(10)]
    path.write_text("\n\n".join(paragraphs))
    docs = train.documents(path)
    assert len(docs) == 3 and "\n\n".join(docs) == "\n\n".join(paragraphs)


@pytest.mark.parametrize("text_bytes, options, complaint", [
    (None, [], "there is no such file"),
    (b"abc \xff\xfe", [], "not UTF-8 (byte 4)"),
    (b"short", [], "too short to hold anything out"),
    (b"one\n<|endoftext|>\ntwo", [], "tokens to train on, and a context is 1024"),
    (b"one\n<|endoftext|>\ntwo", ["--contexts", "256:0.5"], "shares above 0 and 1 in total"),
    (b"one\n<|endoftext|>\ntwo", ["--contexts", "256"], "write LENGTH:SHARE"),
    (b"one\n<|endoftext|>\ntwo", ["--set", "rope_ratio=2"], "rope_ratio is 2: must be between 0 and 1"),
    (b"one\n<|endoftext|>\ntwo", ["--steps", "0"], "--steps 0: must be at least 1"),
    (b"one\n<|endoftext|>\ntwo", ["--tokenizer", "/no/such.json"], "--tokenizer /no/such.json"),
    (b"one\n<|endoftext|>\ntwo", ["--resume"], "--resume: there is no"),
])
def test_refuses_with_a_reason(tmp_path, text_bytes, options, complaint):
    path = tmp_path / "text.txt"
    if text_bytes is not None:
        path.write_bytes(text_bytes)
    assert complaint in run("--text", path, "--out", tmp_path / "out", *options, code=2)


def test_an_earlier_run_is_not_overwritten_nor_continued_as_another(text, tmp_path):
    run("--text", text, "--out", tmp_path, *SMALL)
    assert "continue it with --resume, or delete it" in run("--text", text, "--out", tmp_path, *SMALL, code=2)
    said = run("--text", text, "--out", tmp_path, *SMALL, "--resume", "--lr", "0.5", code=2)
    assert "is of another run: lr 0.002 there, 0.5 here" in said
