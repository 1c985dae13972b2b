"""The configuration of Deep Delta Learning checkpoints: keys, variants, parameter shapes, initialisation.

Needs nothing but the standard library: the PyTorch model and the numpy checkpoint writer share it.
"""
from __future__ import annotations

import dataclasses
import json
import math

VARIANTS = ("gpt", "vdim1", "tc", "tcec", "cc", "ccec")
ACTIVATIONS = (None, "silu", "relu", "elu+1", "identity")

# The sizes of the paper, and one for tests.
SIZES = {
    "tiny": dict(num_hidden_layers=2, num_attention_heads=2, head_dim=16, hidden_size=32, vocab_size=256, block_size=64),
    "small": dict(num_hidden_layers=12, num_attention_heads=6, head_dim=128, hidden_size=768),
    "medium": dict(num_hidden_layers=24, num_attention_heads=8, head_dim=128, hidden_size=1024),
}


class ConfigError(ValueError):
    """A configuration that no model can have; the message is for the person who wrote it."""


@dataclasses.dataclass
class Config:
    """Keys and defaults are the official ones; `variant` is ours, for a checkpoint's tensors tell it."""

    variant: str = "ccec"
    vocab_size: int = 50304
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    hidden_size: int = 768
    head_dim: int = 128
    block_size: int = 1024
    using_groupnorm: bool = False
    use_output_gate: bool = False
    use_qk_rmsnorm: bool = True
    use_k_shift: bool = False
    use_v_shift: bool = False
    q_activation: str | None = None
    k_activation: str | None = None
    v_activation: str | None = None
    rope_ratio: float = 1.0
    embedding_init_std: float = 0.02
    hidden_init_std_factor: float = 0.5
    ddl_k_eps: float = 1e-5
    ddl_beta_single_linear: bool = True
    ddl_beta_hidden_size: int = 128
    ddl_beta_init: float = 1.0
    ddl_v_sigmoid: bool = True
    ddl_v_sigmoid_scale: float = 4.0
    ddl_v_dim1_constant: bool = False
    ddl_v_dim1_constant_value: float = 2.0
    ddl_value_channels: int = 4
    ddl_state_shortconv_kernel_size: int = 4
    ddl_state_read_init: float | None = None
    ddl_v_constant: bool = False
    ddl_v_constant_value: float = 2.0
    input_embed_shortconv_kernel_size: int = 4
    ddl_state_dv_shortconv_causal: bool = False
    # Keys that the official code reads but does not declare: written only when they differ from the default.
    mup: bool = False
    hidden_size_base: int = 1024
    rope_base: float = 10000.0
    rms_norm_eps: float = 1e-5
    intermediate_size: int | None = None
    mlp_hidden_mult: float | None = None

    def __post_init__(self):
        self.check()

    def check(self):
        def need(ok: bool, key: str, allowed: str):
            if not ok:
                raise ConfigError(f"{key} is {getattr(self, key)!r}: {allowed}")

        need(self.variant in VARIANTS, "variant", f"must be one of {', '.join(VARIANTS)}")
        for key in ("vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "head_dim", "block_size",
                    "ddl_beta_hidden_size", "ddl_state_shortconv_kernel_size", "input_embed_shortconv_kernel_size"):
            value = getattr(self, key)
            need(isinstance(value, int) and not isinstance(value, bool) and value >= 1, key, "must be a whole number, at least 1")
        need(0.0 <= self.rope_ratio <= 1.0, "rope_ratio", "must be between 0 and 1")
        need(0.0 < self.ddl_beta_init < 2.0, "ddl_beta_init", "must lie between 0 and 2")
        for key in ("q_activation", "k_activation", "v_activation"):
            need(getattr(self, key) in ACTIVATIONS, key, 'must be null, "silu", "relu", "elu+1" or "identity"')
        if self.variant not in ("gpt", "vdim1"):
            need(self.ddl_value_channels > 1, "ddl_value_channels", "must be at least 2 (one channel is the variant vdim1)")
        if self.variant in ("cc", "ccec"):
            need(self.ddl_state_shortconv_kernel_size <= self.ddl_value_channels, "ddl_state_shortconv_kernel_size",
                 f"must not exceed ddl_value_channels, {self.ddl_value_channels}, in variant {self.variant}")

    # ---- derived

    @property
    def dv(self) -> int:
        return 1 if self.variant in ("gpt", "vdim1") else self.ddl_value_channels

    @property
    def constant_v(self) -> float | None:
        """The value that v always has, or None where it is computed."""
        if self.variant == "vdim1":
            return self.ddl_v_dim1_constant_value if self.ddl_v_dim1_constant else None
        return self.ddl_v_constant_value if self.ddl_v_constant else None

    @property
    def mlp_width(self) -> int:
        if self.variant == "gpt" and self.intermediate_size is not None:
            return self.intermediate_size
        multiple = self.mlp_hidden_mult if self.variant == "gpt" and self.mlp_hidden_mult is not None else 8 / 3
        return math.floor(multiple * self.hidden_size)

    # ---- files

    def to_json(self, dtype: str) -> dict:
        """config.json as the official save_pretrained writes it for this variant."""
        keys = ["vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "head_dim", "block_size",
                "using_groupnorm", "use_output_gate", "use_qk_rmsnorm", "use_k_shift", "use_v_shift", "q_activation",
                "k_activation", "v_activation", "rope_ratio"]
        out = {"architectures": ["GPT"], "model_type": "nanogpt-pro", "dtype": dtype}
        if self.variant != "gpt":
            keys += ["embedding_init_std", "hidden_init_std_factor", "ddl_k_eps", "ddl_beta_single_linear",
                     "ddl_beta_hidden_size", "ddl_beta_init", "ddl_v_sigmoid", "ddl_v_sigmoid_scale"]
            out |= {"bias": False, "dropout": 0.0, "scale_attn_by_inverse_layer_idx": False}
        if self.variant == "vdim1":
            keys += ["ddl_v_dim1_constant", "ddl_v_dim1_constant_value"]
        elif self.variant != "gpt":
            keys += ["ddl_value_channels", "ddl_state_shortconv_kernel_size", "ddl_state_read_init", "ddl_v_constant",
                     "ddl_v_constant_value"]
        if self.variant.endswith("ec"):
            keys.append("input_embed_shortconv_kernel_size")
        if self.variant.startswith("cc"):
            keys.append("ddl_state_dv_shortconv_causal")
        extra = ["mup", "hidden_size_base", "rope_base", "rms_norm_eps"]
        if self.variant == "gpt":
            extra += ["intermediate_size", "mlp_hidden_mult"]
        keys += [k for k in extra if getattr(self, k) != getattr(Config, k)]
        return dict(sorted((out | {k: getattr(self, k) for k in keys}).items()))

    @staticmethod
    def from_checkpoint(config: dict, shapes: dict[str, tuple[int, ...]]) -> "Config":
        """The configuration of a checkpoint, its variant told by the names and ranks of its tensors."""
        known = {f.name for f in dataclasses.fields(Config)} - {"variant"}
        values = {k: v for k, v in config.items() if k in known}
        values["variant"] = variant_of(shapes)
        if values["variant"].startswith("cc") and "ddl_state_shortconv_kernel_size" not in config:
            values["ddl_state_shortconv_kernel_size"] = values.get("ddl_value_channels", 4)
        return Config(**values)


def apply_settings(values: dict, items: list[str]) -> dict:
    """`values` with KEY=VALUE items added, each VALUE as JSON; refuses unknown keys and those that are there already."""
    known = {f.name for f in dataclasses.fields(Config)} - {"variant"}
    out = dict(values)
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or key not in known:
            raise ConfigError(f"--set {item}: not KEY=VALUE with a key among {', '.join(sorted(known - values.keys()))}")
        if key in values:
            raise ConfigError(f"--set {item}: {key} has an option of its own")
        try:
            out[key] = json.loads(value)
        except json.JSONDecodeError:
            raise ConfigError(f"--set {item}: {value!r} is not JSON (a string needs its quotes)")
    return out


def variant_of(shapes: dict[str, tuple[int, ...]]) -> str:
    layer = "transformer.h.0."
    if layer + "attn.c_q.weight" not in shapes:
        raise ConfigError(f"not a checkpoint of this model family: it has no tensor {layer}attn.c_q.weight")
    if layer + "ddl_attn.v_proj.weight" not in shapes:
        return "gpt"
    expands = "ec" if "input_embed.conv.weight" in shapes else ""
    if layer + "compress.weight" in shapes:
        return "cc" + expands
    if layer + "compress.shortconv.weight" in shapes:
        return "tc" + expands
    return "vdim1"


# ---- parameters


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A tensor's shape and its official initial value: `kind` normal (spread = std), uniform (spread = bound),
    constant (value) or last_tap (all 0, but 1 at the end of the last axis)."""

    shape: tuple[int, ...]
    kind: str
    spread: float = 0.0
    value: float = 0.0


def parameters(cfg: Config) -> dict[str, Parameter]:
    """Every tensor of a checkpoint, by its official name; lm_head.weight, tied to wte, is left out."""
    d, dv, hd = cfg.hidden_size, cfg.dv, cfg.head_dim
    inner, kernel = cfg.num_attention_heads * hd, cfg.ddl_state_shortconv_kernel_size
    std = cfg.hidden_init_std_factor / math.sqrt(d)
    ones = lambda n: Parameter((n,), "constant", value=1.0)
    normal = lambda *shape, std=std: Parameter(shape, "normal", spread=std)
    out = {"transformer.wte.weight": normal(cfg.vocab_size, d, std=cfg.embedding_init_std), "ln_f.weight": ones(d)}

    def compressor(prefix: str):
        if cfg.variant in ("gpt", "vdim1"):
            return
        if cfg.variant.startswith("tc"):
            out[prefix + "shortconv.weight"] = normal(d * dv, kernel)
        else:
            out[prefix + "weight"] = normal(d, kernel)
        read = 1.0 / dv if cfg.ddl_state_read_init is None else cfg.ddl_state_read_init
        out[prefix + "read"] = Parameter((dv,), "constant", value=read)

    if cfg.variant.endswith("ec"):
        out["input_embed.conv.weight"] = Parameter((d * dv, 1, cfg.input_embed_shortconv_kernel_size), "last_tap")
    compressor("readout.")
    last = std / math.sqrt(cfg.num_hidden_layers)  # of the projections that end a sublayer
    for i in range(cfg.num_hidden_layers):
        p = f"transformer.h.{i}."
        out |= {p + "ln_1.weight": ones(d), p + "ln_2.weight": ones(d), p + "attn.c_q.weight": normal(inner, d)}
        for name, shifted in (("attn.c_k.", cfg.use_k_shift), ("attn.c_v.", cfg.use_v_shift)):
            out[p + name + ("linear.weight" if shifted else "weight")] = normal(inner, d)
            if shifted:
                out[p + name + "shift_proj.weight"] = normal(cfg.num_attention_heads, d)
        out[p + "attn.c_proj.weight"] = normal(d, inner, std=last)
        if cfg.use_qk_rmsnorm:
            out |= {p + "attn.q_rms.weight": ones(hd), p + "attn.k_rms.weight": ones(hd)}
        if cfg.using_groupnorm:
            out[p + "attn.subln.weight"] = ones(hd)
        if cfg.use_output_gate:
            out[p + "attn.g_proj.weight"] = normal(inner, d)
            if not cfg.using_groupnorm:
                out[p + "attn.o_norm.weight"] = ones(hd)
        out |= {p + "mlp.c_fc1.weight": normal(cfg.mlp_width, d), p + "mlp.c_fc2.weight": normal(cfg.mlp_width, d),
                p + "mlp.c_proj.weight": normal(d, cfg.mlp_width, std=last)}
        compressor(p + "compress.")
        if cfg.variant == "gpt":
            continue
        beta_bias = Parameter((1,), "constant", value=math.log(cfg.ddl_beta_init / (2.0 - cfg.ddl_beta_init)))
        for q in (p + "ddl_attn.", p + "ddl_mlp."):
            if cfg.ddl_beta_single_linear:
                out |= {q + "beta.weight": normal(1, d), q + "beta.bias": beta_bias}
            else:
                hidden = cfg.ddl_beta_hidden_size
                out |= {q + "beta_in.weight": normal(hidden, d), q + "beta_out.weight": normal(1, hidden),
                        q + "beta_out.bias": beta_bias}
            out |= {q + "v_proj.weight": normal(dv, d),
                    q + "v_proj.bias": Parameter((dv,), "uniform", spread=1.0 / math.sqrt(d))}
    return out


def count(cfg: Config) -> int:
    return sum(math.prod(p.shape) for p in parameters(cfg).values())
