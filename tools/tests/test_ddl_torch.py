"""The PyTorch model against the official code's golden files."""
import json

import pytest

torch = pytest.importorskip("torch", reason="the PyTorch model needs PyTorch (tools/requirements.txt)")

import ddl_torch
from conftest import ROOT
from ddl_config import VARIANTS, Config, parameters

CASES = sorted(p.parent for p in (ROOT / "tests" / "data").glob("goldens*/*/golden.safetensors"))
DIMS = dict(vocab_size=50, num_hidden_layers=2, num_attention_heads=2, head_dim=8, hidden_size=24)
OPTIONS = [dict(), dict(use_k_shift=True, use_v_shift=True), dict(use_output_gate=True), dict(using_groupnorm=True),
           dict(ddl_beta_single_linear=False), dict(use_qk_rmsnorm=False)]


def test_there_are_golden_files():
    assert len(CASES) == 89


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_agrees_with_the_official_code(case):
    _, worst, wrong = ddl_torch.check(case)
    assert worst < 1e-4 and wrong == 0


@pytest.mark.parametrize("case", CASES, ids=lambda p: p.name)
def test_config_is_written_as_it_was_read(case):
    """Every key that the official code wrote comes back with the value it had, and no other key is made up."""
    theirs = json.loads((case / "config.json").read_text())
    ours = ddl_torch.Model.load(case).cfg.to_json(theirs["dtype"])
    ignored = {"transformers_version", "rms_norm_eps", "rope_base", "hidden_size_base"}  # the last three: at defaults
    ignored |= {"ddl_v_constant", "ddl_v_dim1_constant", "ddl_v_dim1_constant_value"}  # each of some variants only
    ignored |= {"attention_dtype"} if "ddl_k_eps" not in theirs else set()  # the baseline writes what it was given
    ignored |= {"residual_branch_mult"} if theirs.get("residual_branch_mult") is None else set()
    assert ours == {k: v for k, v in theirs.items() if k in ours}
    assert theirs.keys() - ours.keys() <= ignored


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_parameters_are_those_of_a_checkpoint(variant, options):
    cfg = Config(variant=variant, **DIMS, **options)
    own = {k: tuple(v.shape) for k, v in ddl_torch.Model(cfg).named_parameters()}
    assert own == {k: v.shape for k, v in parameters(cfg).items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_token_changes_nothing_before_it(variant):
    model = ddl_torch.Model(Config(variant=variant, **DIMS)).initialise(0)
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 11] = 40
    a, b = model(ids), model(changed)
    assert torch.equal(a[:, :11], b[:, :11]) and not torch.allclose(a[:, 11:], b[:, 11:])


def test_gradients_are_right():
    """The hand-written derivative, against differences."""
    X = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    W = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ddl_torch.WeightedChannels.apply, (X, W))
