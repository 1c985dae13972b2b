"""Needs numpy and pytest only."""
import json
import math
import struct

import numpy as np
import pytest

import make_random_checkpoint
from ddl_config import REVISIONS, SIZES, VARIANTS, Config, ConfigError, Layout, count, parameters

COUNTS = [  # the official code's, tied weights once
    ("gpt", 123_590_400, 353_508_352),
    ("vdim1", 123_627_312, 353_606_752),
    ("tc", 123_842_476, 354_164_052),
    ("tcec", 123_854_764, 354_180_436),
    ("cc", 123_722_668, 353_856_852),
    ("ccec", 123_734_956, 353_873_236),
]


@pytest.mark.parametrize("variant, small, medium", COUNTS)
def test_parameter_counts_are_the_papers(variant, small, medium):
    assert count(Config(variant=variant, **SIZES["small"])) == small
    assert count(Config(variant=variant, **SIZES["medium"])) == medium


def read(folder):
    raw = (folder / "model.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + n])
    header.pop("__metadata__")
    return header, raw[8 + n:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("revision", REVISIONS)
@pytest.mark.parametrize("dtype, code, size", [("float32", "F32", 4), ("bfloat16", "BF16", 2)])
def test_writes_every_tensor_once_and_nothing_else(tmp_path, variant, revision, dtype, code, size):
    options = ["--variant", variant, "--revision", revision, "--dtype", dtype, "--out", str(tmp_path)]
    assert make_random_checkpoint.main(options) == 0
    header, data = read(tmp_path)
    cfg = Config.from_checkpoint(json.loads((tmp_path / "config.json").read_text()),
                                 {k: tuple(v["shape"]) for k, v in header.items()})
    assert cfg.variant == variant
    # Without a compressor legacy files are as 2b55f25's.
    assert cfg.revision == ("2b55f25" if revision == "legacy" and variant in ("gpt", "vdim1") else revision)
    layout = Layout(cfg.variant, cfg.revision)
    assert {k: tuple(v["shape"]) for k, v in header.items()} == \
        dict(layout.stored(k, v.shape, cfg.hidden_size) for k, v in parameters(cfg).items())
    assert {v["dtype"] for v in header.values()} == {code}
    spans = sorted(v["data_offsets"] for v in header.values())
    assert [a for a, _ in spans] == [0] + [b for _, b in spans[:-1]] and spans[-1][1] == len(data)
    assert len(data) == size * count(cfg)


def test_the_seed_decides(tmp_path):
    files = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_random_checkpoint.main(["--seed", str(seed), "--out", str(tmp_path / name)])
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


def test_initial_values_are_the_official_ones_of_2b55f25(tmp_path):
    make_random_checkpoint.main(["--revision", "2b55f25", "--hidden-size", "64", "--layers", "4", "--vocab-size", "1024",
                                 "--out", str(tmp_path)])
    header, data = read(tmp_path)

    def tensor(name):
        a, b = header[name]["data_offsets"]
        return np.frombuffer(data[a:b], "<f4").reshape(header[name]["shape"])

    layer = "transformer.h.3."
    for name, std in [("transformer.wte.weight", 0.02), (layer + "attn.c_q.weight", 0.5 / 8),
                      (layer + "attn.c_proj.weight", 0.5 / 8 / 2), (layer + "mlp.c_proj.weight", 0.5 / 8 / 2),
                      (layer + "compress.weight", 0.5 / 8)]:
        assert tensor(name).std() == pytest.approx(std, rel=0.1), name
    assert (tensor(layer + "compress.read") == 0.25).all()
    assert (tensor(layer + "ddl_attn.beta.bias") == 0).all()
    assert (tensor("ln_f.weight") == 1).all()
    assert np.abs(tensor(layer + "ddl_mlp.v_proj.bias")).max() <= 1 / 8
    expand = tensor("input_embed.conv.weight")
    assert (expand[..., -1] == 1).all() and (expand[..., :-1] == 0).all()


@pytest.mark.parametrize("settings, divisor", [
    ([], 4), (["--set", 'parameterization="completeP"', "--set", "num_hidden_layers_base=2"], 2),
    (["--set", 'parameterization="completeP"'], 4), (["--set", 'parameterization="widthmuP"', "--set", "num_hidden_layers_base=2"], 4),
])
def test_initial_values_are_the_official_ones_of_the_newest_revision(tmp_path, settings, divisor):
    make_random_checkpoint.main(["--hidden-size", "64", "--layers", "4", "--vocab-size", "1024", *settings, "--out", str(tmp_path)])
    header, data = read(tmp_path)

    def tensor(name):
        a, b = header[name]["data_offsets"]
        return np.frombuffer(data[a:b], "<f4").reshape(header[name]["shape"])

    layer = "transformer.h.3."
    for name, std in [("transformer.wte.weight", 0.02),
                      (layer + "attn.c_q.weight", 0.5 / 8 * math.sqrt(32 / 64)),  # narrower than what it reads
                      (layer + "mlp.c_fc1.weight", 0.5 / 8),
                      (layer + "attn.o_proj.weight", 0.5 / math.sqrt(32) / divisor),
                      (layer + "mlp.o_proj.weight", 0.5 / math.sqrt(170) * math.sqrt(64 / 170) / divisor)]:
        assert tensor(name).std() == pytest.approx(std, rel=0.1), name
    assert (tensor(layer + "compress.weight") == 0.25).all() and (tensor("readout.read") == 0.25).all()
    expand = tensor("input_embed.weight")
    assert expand.shape == (64, 4, 4) and (expand[..., -1] == 1).all() and (expand[..., :-1] == 0).all()


@pytest.mark.parametrize("value, bits", [
    (1.0, 0x3F80), (-2.5, 0xC020), (0.0, 0x0000),
    (1.0 + 2**-8, 0x3F80), (1.0 + 3 * 2**-8, 0x3F82),  # halfway: to even
    (1.0 + 2**-8 + 2**-16, 0x3F81), (math.pi, 0x4049),
])
def test_bfloat16_rounds_to_nearest(value, bits):
    assert np.frombuffer(make_random_checkpoint.encoded(np.array([value], np.float32), "bfloat16"), "<u2")[0] == bits


@pytest.mark.parametrize("options, complaint", [
    (["--set", "rope_ratio=1.5"], "rope_ratio is 1.5: must be between 0 and 1"),
    (["--set", "no_such_key=1"], "not KEY=VALUE with a key among"),
    (["--set", "k_activation=silu"], "'silu' is not JSON"),
    (["--set", "k_activation=\"elu\""], "k_activation is 'elu'"),
    (["--set", "head_dim=8"], "head_dim has an option of its own"),
    (["--hidden-size", "0"], "hidden_size is 0: must be a whole number, at least 1"),
    (["--variant", "tc", "--value-channels", "1"], "at least 2 (one channel is the variant vdim1)"),
    (["--set", "ddl_state_shortconv_kernel_size=5"], "must not exceed ddl_value_channels, 4"),
    (["--revision", "2b55f25", "--set", "ddl_state_shortconv_kernel_size=3"], "must be ddl_value_channels, 4, in 2b55f25"),
    (["--set", "mup=true"], 'its parameterization "widthmuP" does the same'),
    (["--set", 'parameterization="muP"'], "the official code refuses it"),
    (["--revision", "2b55f25", "--set", 'parameterization="completeP"'], "2b55f25 does not read it"),
    (["--revision", "legacy", "--set", "residual_branch_mult=0.5"], "legacy does not read it"),
    (["--set", "residual_branch_mult=0"], "residual_branch_mult is 0: must be above 0"),
    (["--seed", "-1"], "must not be negative"),
])
def test_refuses_with_a_reason(tmp_path, capsys, options, complaint):
    assert make_random_checkpoint.main(["--out", str(tmp_path), *options]) == 2
    assert complaint in capsys.readouterr().err


def test_a_config_with_an_unknown_model_is_refused():
    with pytest.raises(ConfigError, match="not a checkpoint of this model family"):
        Config.from_checkpoint({}, {"model.embed_tokens.weight": (3, 4)})
