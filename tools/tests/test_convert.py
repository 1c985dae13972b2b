"""convert_checkpoint.py as its user runs it. What it takes from others' trainers is in test_saves.py."""
import json

import pytest

torch = pytest.importorskip("torch", reason="converting needs PyTorch (tools/requirements.txt)")
from safetensors.torch import load_file, save_file

import convert_checkpoint
from conftest import ROOT
from ddl_config import NEWEST, REVISIONS
from ddl_torch import Model

CASES = sorted(p.parent for p in (ROOT / "tests" / "data").glob("goldens*/*/golden.safetensors"))


def golden(name):
    return next(p for p in CASES if p.name == name)


def convert(source, destination, *options):
    return convert_checkpoint.main([str(source), str(destination), *options])


def logits(folder, case):
    return Model.load(folder)(load_file(case / "golden.safetensors")["input_ids"].long())


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_every_golden_becomes_todays_and_computes_what_the_official_code_does(tmp_path, case):
    assert convert(case, tmp_path / "new", "--dtype", "float32") == 0
    assert Model.load(tmp_path / "new").cfg.revision == NEWEST
    gold = load_file(case / "golden.safetensors")
    assert (logits(tmp_path / "new", case) - gold["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["ccec_mup", "tc_base", "tcec_odd", "cc_dv3", "gpt_mlp_mult", "vdim1_gate_groupnorm"])
def test_there_and_back_gives_the_same_file(tmp_path, name):
    case = golden(name)
    assert convert(case, tmp_path / "new") == 0
    assert convert(tmp_path / "new", tmp_path / "old", "--revision", "2b55f25") == 0
    assert convert(tmp_path / "old", tmp_path / "newer") == 0
    old, theirs = load_file(tmp_path / "old" / "model.safetensors"), load_file(case / "model.safetensors")
    assert old.keys() == theirs.keys() and all(torch.equal(old[k], theirs[k]) for k in old)
    assert (tmp_path / "new/config.json").read_text() == (tmp_path / "newer/config.json").read_text()
    assert (tmp_path / "new/model.safetensors").read_bytes() == (tmp_path / "newer/model.safetensors").read_bytes()


@pytest.mark.parametrize("revision", REVISIONS)
def test_writes_any_revision(tmp_path, revision):
    case = golden("legacy_ccec_causal")
    options = ["--revision", revision]
    if revision == "2b55f25":  # whose code ignores the key that this checkpoint has
        assert convert(case, tmp_path / "new", *options) == 2
        return
    assert convert(case, tmp_path / "new", *options) == 0
    gold = load_file(case / "golden.safetensors")
    assert (logits(tmp_path / "new", case) - gold["logits"]).abs().max() < 1e-4


@pytest.mark.parametrize("options, key", [([], "logits"), (["--obey-dv-shortconv-causal"], "logits_accelerated")])
def test_the_causal_flag_that_2b55f25_ignores_keeps_its_meaning(tmp_path, options, key):
    case = golden("ccec_dvcausal")
    assert convert(case, tmp_path / "new", *options) == 0
    gold = load_file(case / "golden.safetensors")
    assert (logits(tmp_path / "new", case) - gold[key]).abs().max() < 1e-4


def test_bfloat16_halves_the_file(tmp_path, capsys):
    case = golden("v2_ccec_base")
    assert convert(case, tmp_path / "new", "--dtype", "bfloat16") == 0
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    assert {v.dtype for v in tensors.values()} == {torch.bfloat16}
    theirs = load_file(case / "model.safetensors")
    assert all(torch.equal(tensors[k], theirs[k].bfloat16()) for k in theirs)
    assert json.loads((tmp_path / "new/config.json").read_text())["dtype"] == "bfloat16"
    assert "rounding moved them" in capsys.readouterr().out


def test_a_head_of_its_own_is_kept(tmp_path, capsys):
    case = golden("v2_vdim1_base")
    (tmp_path / "old").mkdir()
    tensors = load_file(case / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"] * 2
    save_file(tensors, tmp_path / "old" / "model.safetensors")
    (tmp_path / "old/config.json").write_text((case / "config.json").read_text())
    assert convert(tmp_path / "old", tmp_path / "new") == 0
    assert (logits(tmp_path / "new", case) - 2 * load_file(case / "golden.safetensors")["logits"]).abs().max() < 2e-4
    assert convert(tmp_path / "new", tmp_path / "older", "--revision", "2b55f25") == 2
    assert "lm_head.weight differs" in capsys.readouterr().err


def test_the_tokenizer_comes_along_and_eos_ids_stay(tmp_path):
    case = golden("v2_ccec_base")
    old = tmp_path / "old"
    old.mkdir()
    (old / "model.safetensors").write_bytes((case / "model.safetensors").read_bytes())
    (old / "config.json").write_text(json.dumps(json.loads((case / "config.json").read_text()) | {"eos_token_id": [3, 5]}))
    for name in ("tokenizer.json", "merges.txt", "my.tiktoken", "notes.txt", "optimizer.pt"):
        (old / name).write_text(name)
    assert convert(old, tmp_path / "new") == 0
    assert {p.name for p in (tmp_path / "new").iterdir()} == \
        {"config.json", "model.safetensors", "tokenizer.json", "merges.txt", "my.tiktoken"}
    assert json.loads((tmp_path / "new/config.json").read_text())["eos_token_id"] == [3, 5]


def broken(tmp_path, change):
    case = golden("v2_ccec_base")
    old = tmp_path / "old"
    old.mkdir()
    tensors, config = load_file(case / "model.safetensors"), json.loads((case / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, old / "model.safetensors")
    (old / "config.json").write_text(json.dumps(config))
    return old


@pytest.mark.parametrize("change, options, complaint", [
    (lambda t, c: t.pop("ln_f.weight"), [], "ln_f.weight: missing, expected (32,)"),
    (lambda t, c: t.update(extra=torch.ones(2)), [], "extra: (2,), but there is no such tensor in this model (--ignore leaves it out)"),
    (lambda t, c: t.update(extra=torch.ones(2)), ["--ignore", "ext*"], None),
    (lambda t, c: c.update(vocab_size=64), [], "transformer.wte.weight: found (128, 32), expected (64, 32)"),
    (lambda t, c: c.update(parameterization="muP"), [], "the official code refuses it"),
    (lambda t, c: c.update(residual_branch_mult=0.5), ["--revision", "2b55f25"], "the residual multiplier is 0.5, and the code of 2b55f25 has none"),
    (lambda t, c: t.update({"readout.shortconv.weight": torch.ones(128, 4)}), [], "tensors of different variants or revisions are mixed"),
    (lambda t, c: None, ["--config", "/nowhere/config.json"], "--config: /nowhere/config.json cannot be found"),
])
def test_refuses_with_a_reason(tmp_path, capsys, change, options, complaint):
    code = convert(broken(tmp_path, change), tmp_path / "new", *options)
    said = capsys.readouterr().err
    if complaint is None:
        assert code == 0, said
        return
    assert code == 2 and complaint in said
    assert [p.name for p in tmp_path.iterdir()] == ["old"]  # nothing half-written


def test_never_writes_over_anything(tmp_path, capsys):
    case = golden("v2_ccec_base")
    assert convert(case, case) == 2
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("mine")
    assert convert(case, tmp_path / "notes") == 2
    assert convert(case, tmp_path / "notes/todo.txt") == 2
    assert capsys.readouterr().err.count("is there already") == 3
    (tmp_path / "empty").mkdir()
    assert convert(case, tmp_path / "empty") == 0


def test_code_in_a_pickle_is_not_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()
    (tmp_path / "old/config.json").write_text((golden("v2_ccec_base") / "config.json").read_text())
    (tmp_path / "old/ckpt.pt").write_bytes((ROOT / "tests/data/pickles/runs_a_command.bin").read_bytes())
    assert convert(tmp_path / "old", tmp_path / "new") == 2
    assert "holds more than tensors and plain values" in capsys.readouterr().err
    assert not (tmp_path / "pickle-was-run").exists()


def test_several_checkpoints_are_not_guessed_between(tmp_path, capsys):
    for name in ("checkpoint-1", "checkpoint-2"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "model.safetensors").write_bytes(b"")
    assert convert(tmp_path / "run", tmp_path / "new") == 2
    assert "holds several checkpoints: checkpoint-1, checkpoint-2. Name one of them" in capsys.readouterr().err
