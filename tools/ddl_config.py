"""The configuration of Deep Delta Learning checkpoints: keys, variants, revisions, parameter shapes, initialisation.

Needs nothing but the standard library: the PyTorch model, the checkpoint writer and the converter share it.

Parameters have one name and shape here whatever the revision: those of 2b55f25, where no name stands for two things.
`Layout` translates from and to what a revision's files hold.
"""
from __future__ import annotations

import dataclasses
import json
import math
import re

VARIANTS = ("gpt", "vdim1", "tc", "tcec", "cc", "ccec")
ACTIVATIONS = (None, "silu", "relu", "elu+1", "identity")
# The states of the official repository whose checkpoints differ, oldest first; legacy is before February 2026.
REVISIONS = ("legacy", "2b55f25", "d1f7621")
NEWEST = REVISIONS[-1]
# What d1f7621 scales by the model's size, by the value of its key `parameterization`; other values scale nothing.
WIDTH_SCALED = ("widthmuP", "widthmup")  # the logits
DEPTH_SCALED = ("completeP", "completep", "spectralP", "SpectralP", "spectralp")  # the logits and every sublayer's update

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
    """Keys and defaults are the official ones; `variant` and `revision` are ours, inferred from a checkpoint's tensors."""

    variant: str = "ccec"
    revision: str = NEWEST
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
    ddl_state_shortconv_kernel_size: int | None = None  # None: dv in CC, 4 in TC
    ddl_state_read_init: float | None = None
    ddl_v_constant: bool = False
    ddl_v_constant_value: float = 2.0
    input_embed_shortconv_kernel_size: int = 4
    ddl_state_dv_shortconv_causal: bool = False
    # Keys that the official code reads but does not declare: written only when they differ from the default.
    mup: bool = False  # up to 2b55f25
    parameterization: str | None = None  # since d1f7621, as the next two
    num_hidden_layers_base: float | None = None
    residual_branch_mult: float | None = None
    hidden_size_base: float = 1024
    rope_base: float = 10000.0
    rms_norm_eps: float = 1e-5
    intermediate_size: int | None = None
    mlp_hidden_mult: float | None = None

    def __post_init__(self):
        if self.ddl_state_shortconv_kernel_size is None:
            self.ddl_state_shortconv_kernel_size = self.ddl_value_channels if self.variant.startswith("cc") else 4
        self.check()

    def check(self):
        def need(ok: bool, key: str, allowed: str):
            if not ok:
                raise ConfigError(f"{key} is {getattr(self, key)!r}: {allowed}")

        need(self.variant in VARIANTS, "variant", f"must be one of {', '.join(VARIANTS)}")
        need(self.revision in REVISIONS, "revision", f"must be one of {', '.join(REVISIONS)}")
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
            need(self.revision != "2b55f25" or self.ddl_state_shortconv_kernel_size == self.ddl_value_channels,
                 "ddl_state_shortconv_kernel_size", f"must be ddl_value_channels, {self.ddl_value_channels}, in 2b55f25")
        need(self.residual_branch_mult is None or self.residual_branch_mult > 0, "residual_branch_mult", "must be above 0")
        need(self.parameterization not in ("muP", "mup"), "parameterization", "must be another: the official code refuses it")
        if self.revision == NEWEST:
            need(not self.mup, "mup", f"no key of {NEWEST}: its parameterization \"widthmuP\" does the same")
        else:
            need(self.parameterization not in WIDTH_SCALED + DEPTH_SCALED, "parameterization", f"{self.revision} does not read it")
            need(self.residual_branch_mult in (None, 1), "residual_branch_mult", f"{self.revision} does not read it")

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
    def channels_are_causal(self) -> bool:
        """Whether the eager code convolves over value channels backwards only: 2b55f25 ignores the key."""
        return self.ddl_state_dv_shortconv_causal and self.revision != "2b55f25"

    @property
    def logit_scale(self) -> float:
        scales = self.mup or self.parameterization in WIDTH_SCALED + DEPTH_SCALED
        return self.hidden_size_base / self.hidden_size if scales else 1.0

    @property
    def residual_multiplier(self) -> float:
        """What every sublayer's whole update is multiplied by, in all layers alike."""
        if self.residual_branch_mult is not None:
            return float(self.residual_branch_mult)
        if self.parameterization not in DEPTH_SCALED or self.num_hidden_layers_base is None:
            return 1.0
        return self.num_hidden_layers_base / self.num_hidden_layers

    @property
    def mlp_width(self) -> int:
        if self.variant == "gpt" and self.intermediate_size is not None:
            return self.intermediate_size
        multiple = self.mlp_hidden_mult if self.variant == "gpt" and self.mlp_hidden_mult is not None else 8 / 3
        return math.floor(multiple * self.hidden_size)

    # ---- files

    def to_json(self, dtype: str) -> dict:
        """config.json as the official save_pretrained of this revision writes it for this variant."""
        newest = self.revision == NEWEST
        keys = ["vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_size", "head_dim", "block_size",
                "using_groupnorm", "use_output_gate", "use_qk_rmsnorm", "use_k_shift", "use_v_shift", "q_activation",
                "k_activation", "v_activation", "rope_ratio"]
        out = {"architectures": ["GPT"], "model_type": "nanogptpro" if newest else "nanogpt-pro", "dtype": dtype}
        if newest:
            out |= {"add_cross_attention": False, "is_decoder": True, "tie_word_embeddings": True, "torchscript": False}
        if self.variant != "gpt":
            keys += ["embedding_init_std", "hidden_init_std_factor", "ddl_k_eps", "ddl_beta_single_linear",
                     "ddl_beta_hidden_size", "ddl_beta_init", "ddl_v_sigmoid", "ddl_v_sigmoid_scale"]
            out |= {"bias": False, "dropout": 0.0, "scale_attn_by_inverse_layer_idx": False}
            if newest:
                out |= {"attention_dtype": "auto", "ddl_sequence_reduction_version": 1}
        if self.variant == "vdim1":
            keys += ["ddl_v_dim1_constant", "ddl_v_dim1_constant_value"]
        elif self.variant != "gpt":
            keys += ["ddl_value_channels", "ddl_state_shortconv_kernel_size", "ddl_state_read_init", "ddl_v_constant",
                     "ddl_v_constant_value"]
        if self.variant.endswith("ec"):
            keys.append("input_embed_shortconv_kernel_size")
        if self.variant.startswith("cc"):
            keys.append("ddl_state_dv_shortconv_causal")
        extra = ["parameterization", "num_hidden_layers_base", "residual_branch_mult"] if newest else ["mup"]
        extra += ["hidden_size_base", "rope_base", "rms_norm_eps"]
        if self.variant == "gpt":
            extra += ["intermediate_size", "mlp_hidden_mult"]
        keys += [k for k in extra if getattr(self, k) != getattr(Config, k)]
        return dict(sorted((out | {k: getattr(self, k) for k in keys}).items()))

    @staticmethod
    def from_checkpoint(config: dict, shapes: dict[str, tuple[int, ...]]) -> "Config":
        """The configuration of a checkpoint, variant and revision inferred from the names and ranks of its tensors as stored."""
        layout = Layout.of(shapes)
        known = {f.name for f in dataclasses.fields(Config)} - {"variant", "revision"}
        values = {k: v for k, v in config.items() if k in known}
        for field in dataclasses.fields(Config):  # pydantic takes a quoted number where it may have a fraction
            if "float" in field.type and isinstance(values.get(field.name), str):
                values[field.name] = float(values[field.name])
        for key in ("rope_base", "rms_norm_eps", "hidden_size_base"):  # null is as good as no key
            if values.get(key, 0) is None:
                del values[key]
        if layout.revision == NEWEST and "mup" in values:
            raise ConfigError(f"mup is {values['mup']!r}: no key of {NEWEST}, whose tensor names these are")
        return Config(variant=layout.variant, revision=layout.revision, **values)


def apply_settings(values: dict, items: list[str]) -> dict:
    """`values` with KEY=VALUE items added, each VALUE as JSON; refuses unknown keys and those that are there already."""
    known = {f.name for f in dataclasses.fields(Config)} - {"variant", "revision"}
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


# ---- layouts

# The tensors that not every revision writes alike: how their names end, and how n rows and k columns of numbers lie,
# rows (n, k), one (n, 1, k) or channels (d, n / d, k). The numbers are in the same order anyway.
FORMS = {
    # revision: output of attn. and mlp., compress. and readout. in TC, the same in CC, input_embed.
    "legacy": (("c_proj.weight", "rows"), ("shortconv.conv.weight", "one"), ("shortconv.weight", "one"), ("conv.weight", "one")),
    "2b55f25": (("c_proj.weight", "rows"), ("shortconv.weight", "rows"), ("weight", "rows"), ("conv.weight", "one")),
    "d1f7621": (("o_proj.weight", "rows"), ("weight", "channels"), ("weight", "rows"), ("weight", "channels")),
}
RANKS = {"rows": 2, "one": 3, "channels": 3}
OWN = "2b55f25"
LAYER = re.compile(r"transformer\.h\.(?:0|[1-9]\d*)\.")


def place_of(name: str) -> tuple[str, str] | None:
    """Where a tensor stands, sublayer, compressor or expansion, and what follows in its name; None elsewhere."""
    layer = LAYER.match(name)
    rest = name[layer.end():] if layer else name
    heads = {"attn.": "sublayer", "mlp.": "sublayer", "compress.": "compressor"} if layer else \
        {"readout.": "compressor", "input_embed.": "expansion"}
    for head, place in heads.items():
        if rest.startswith(head):
            return place, rest[len(head):]
    return None


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a checkpoint's files write its tensors."""

    variant: str
    revision: str

    def form(self, place: str) -> tuple[str, str]:
        output, tc, cc, expansion = FORMS[self.revision]
        return {"sublayer": output, "compressor": tc if self.variant.startswith("tc") else cc, "expansion": expansion}[place]

    @staticmethod
    def of(shapes: dict[str, tuple[int, ...]]) -> "Layout":
        """That of tensors with these names and shapes. Fails if they are of several, or not of this family."""
        layer = "transformer.h.0."
        if layer + "attn.c_q.weight" not in shapes:
            raise ConfigError(f"not a checkpoint of this model family: it has no tensor {layer}attn.c_q.weight")
        every = [Layout(kind, revision) for revision in reversed(REVISIONS) for kind in ("cc", "tc")]
        possible = every
        places = set()
        for name, shape in shapes.items():
            placed = place_of(name)
            if placed is None:
                continue
            places.add(placed[0])
            if not any(placed[1] == layout.form(placed[0])[0] for layout in every):
                continue  # a tensor that all write alike
            left = [x for x in possible if (placed[1], len(shape)) == (x.form(placed[0])[0], RANKS[x.form(placed[0])[1]])]
            if not left:
                raise ConfigError(f"tensors of different variants or revisions are mixed: {name} {tuple(shape)} is one")
            possible = left
        delta = layer + "ddl_attn.v_proj.weight" in shapes
        variant = possible[0].variant + ("ec" if "expansion" in places else "") if "compressor" in places else \
            "vdim1" if delta else "gpt"
        return Layout(variant, possible[0].revision)

    def own(self, name: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """Name and shape in this program of a tensor that a file of this layout holds."""
        return self._to(Layout(self.variant, OWN), name, shape)

    def stored(self, name: str, shape: tuple[int, ...], hidden_size: int) -> tuple[str, tuple[int, ...]]:
        """Name and shape in a file of this layout of a tensor of this program."""
        return Layout(self.variant, OWN)._to(self, name, shape, hidden_size)

    def _to(self, other, name, shape, hidden_size=None):
        placed = place_of(name)
        if placed is None or self.form(placed[0])[0] != placed[1]:
            return name, tuple(shape)
        ending, (other_ending, other_axes) = placed[1], other.form(placed[0])
        rows, columns = math.prod(shape[:-1]), shape[-1]
        if other_axes == "channels":
            shape = (hidden_size, rows // hidden_size, columns)
        else:
            shape = (rows, columns) if other_axes == "rows" else (rows, 1, columns)
        return name[:-len(ending)] + other_ending, shape


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
    """Every tensor of a checkpoint, by its name here (see Layout); lm_head.weight, tied to wte, is left out."""
    d, dv, hd = cfg.hidden_size, cfg.dv, cfg.head_dim
    inner, kernel = cfg.num_attention_heads * hd, cfg.ddl_state_shortconv_kernel_size
    newest = cfg.revision == NEWEST
    ones = lambda n: Parameter((n,), "constant", value=1.0)

    def normal(rows: int, columns: int, divisor: float = 1.0) -> Parameter:
        inputs = columns if newest else d
        narrowing = min(1.0, math.sqrt(rows / columns)) if newest else 1.0
        return Parameter((rows, columns), "normal", spread=cfg.hidden_init_std_factor / math.sqrt(inputs) * narrowing / divisor)

    wte = Parameter((cfg.vocab_size, d), "normal", spread=cfg.embedding_init_std)
    out = {"transformer.wte.weight": wte, "ln_f.weight": ones(d)}

    def compressor(prefix: str):
        if cfg.variant in ("gpt", "vdim1"):
            return
        name, rows = ("shortconv.weight", d * dv) if cfg.variant.startswith("tc") else ("weight", d)
        mean = Parameter((rows, kernel), "constant", value=1.0 / kernel)
        out[prefix + name] = mean if newest else normal(rows, kernel)
        read = 1.0 / dv if cfg.ddl_state_read_init is None else cfg.ddl_state_read_init
        out[prefix + "read"] = Parameter((dv,), "constant", value=read)

    if cfg.variant.endswith("ec"):
        out["input_embed.conv.weight"] = Parameter((d * dv, 1, cfg.input_embed_shortconv_kernel_size), "last_tap")
    compressor("readout.")
    # Of the projections that end a sublayer.
    divisor = math.sqrt(cfg.num_hidden_layers)
    if newest:
        base = cfg.num_hidden_layers_base if cfg.parameterization in DEPTH_SCALED else None
        divisor = base or cfg.num_hidden_layers
    for i in range(cfg.num_hidden_layers):
        p = f"transformer.h.{i}."
        out |= {p + "ln_1.weight": ones(d), p + "ln_2.weight": ones(d), p + "attn.c_q.weight": normal(inner, d)}
        for name, shifted in (("attn.c_k.", cfg.use_k_shift), ("attn.c_v.", cfg.use_v_shift)):
            out[p + name + ("linear.weight" if shifted else "weight")] = normal(inner, d)
            if shifted:
                out[p + name + "shift_proj.weight"] = normal(cfg.num_attention_heads, d)
        out[p + "attn.c_proj.weight"] = normal(d, inner, divisor)
        if cfg.use_qk_rmsnorm:
            out |= {p + "attn.q_rms.weight": ones(hd), p + "attn.k_rms.weight": ones(hd)}
        if cfg.using_groupnorm:
            out[p + "attn.subln.weight"] = ones(hd)
        if cfg.use_output_gate:
            out[p + "attn.g_proj.weight"] = normal(inner, d)
            if not cfg.using_groupnorm:
                out[p + "attn.o_norm.weight"] = ones(hd)
        out |= {p + "mlp.c_fc1.weight": normal(cfg.mlp_width, d), p + "mlp.c_fc2.weight": normal(cfg.mlp_width, d),
                p + "mlp.c_proj.weight": normal(d, cfg.mlp_width, divisor)}
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
