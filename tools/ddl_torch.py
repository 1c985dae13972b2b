#!/usr/bin/env python3
"""Deep Delta Learning transformers in PyTorch: every variant, for training and as a reference.

One `Model` covers the additive baseline and the five delta variants:

    gpt     x + f(x), the usual residual stream
    vdim1   delta rewrite of a state with one value channel
    tc      dv value channels, compressed by a causal convolution over tokens
    tcec    tc with a convolution that expands the token embedding into the state
    cc      dv value channels, compressed by a convolution over the channels
    ccec    cc with the expanding convolution (the paper's "DDL")

Parameters carry names and shapes of the official code's 2b55f25. `stored_tensors` gives a `state_dict()` those of any
revision, `own_tensors` takes them back; `Model.load` reads every revision.

    from ddl_torch import Model
    model = Model.load("models/ddl-demo")              # a folder with config.json and model.safetensors
    logits = model(torch.tensor([[464, 318]]))          # [batch, tokens, vocab]

Run as a program it compares itself with golden files (see tools/README.md):

    tools/ddl_torch.py --check tests/data/goldens [more folders]
"""
from __future__ import annotations

import argparse
import json
import pathlib
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

from ddl_config import NEWEST, Config, Layout, parameters

LN_EPS = 1e-5  # the delta variants' norms ignore rms_norm_eps


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float = LN_EPS):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight.float() * y).to(x.dtype)


def activation(name: str | None):
    if name in (None, "identity"):
        return lambda z: z
    return {"silu": F.silu, "relu": F.relu, "elu+1": lambda z: F.elu(z) + 1.0}[name]


def linear(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias)


def earlier(x: torch.Tensor, steps: int) -> torch.Tensor:
    """x[:, t - steps], zeros before the start; tokens are axis 1."""
    if steps == 0:
        return x
    return F.pad(x[:, :-steps], [0, 0] * (x.dim() - 2) + [min(steps, x.shape[1]), 0])[:, : x.shape[1]]


class ShiftedLinear(nn.Module):
    """A projection whose heads mix in the previous token's output: a_t o_{t-1} + (1 - a_t) o_t."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.heads = cfg.num_attention_heads
        self.linear = linear(cfg.hidden_size, self.heads * cfg.head_dim)
        self.shift_proj = linear(cfg.hidden_size, self.heads)

    def forward(self, x):
        out = self.linear(x).unflatten(-1, (self.heads, -1))
        alpha = torch.sigmoid(self.shift_proj(x).float()).unsqueeze(-1)
        return (alpha * earlier(out, 1) + (1 - alpha) * out).to(out.dtype).flatten(-2)


class Attention(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        d, inner, hd = cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim, cfg.head_dim
        self.heads, self.head_dim = cfg.num_attention_heads, hd
        self.c_q = linear(d, inner)
        self.c_k = ShiftedLinear(cfg) if cfg.use_k_shift else linear(d, inner)
        self.c_v = ShiftedLinear(cfg) if cfg.use_v_shift else linear(d, inner)
        self.c_proj = linear(inner, d)
        self.act = [activation(a) for a in (cfg.q_activation, cfg.k_activation, cfg.v_activation)]
        self.q_rms = RMSNorm(hd) if cfg.use_qk_rmsnorm else None
        self.k_rms = RMSNorm(hd) if cfg.use_qk_rmsnorm else None
        self.subln = RMSNorm(hd) if cfg.using_groupnorm else None
        self.g_proj = linear(d, inner) if cfg.use_output_gate else None
        self.o_norm = (RMSNorm(hd, cfg.rms_norm_eps)
                       if cfg.use_output_gate and not cfg.using_groupnorm else None)
        self.rotary = 2 * (int(hd * cfg.rope_ratio) // 2)  # how many leading dims of a head rotate

    def rotate(self, z, cos, sin):  # z [batch, tokens, heads, hd]; pairs are split halves of the rotary dims
        half = self.rotary // 2
        if half == 0:
            return z
        a, b, rest = z.split([half, half, self.head_dim - self.rotary], dim=-1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)

    def forward(self, x, cos, sin):
        q, k, v = (f(p(x)).unflatten(-1, (self.heads, self.head_dim))
                   for f, p in zip(self.act, (self.c_q, self.c_k, self.c_v)))
        q, k = self.rotate(q.float(), cos, sin), self.rotate(k.float(), cos, sin)
        if self.q_rms is not None:  # after RoPE: the learned weight makes scores depend on positions
            q, k = self.q_rms(q), self.k_rms(k)
        q, k, v = (z.to(v.dtype).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        if self.subln is not None:
            y = self.subln(y)
        elif self.o_norm is not None:
            y = self.o_norm(y)
        if self.g_proj is not None:
            y = y * F.silu(self.g_proj(x)).unflatten(-1, (self.heads, self.head_dim))
        return self.c_proj(y.flatten(-2))


class MLP(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.c_fc1 = linear(cfg.hidden_size, cfg.mlp_width)
        self.c_fc2 = linear(cfg.hidden_size, cfg.mlp_width)
        self.c_proj = linear(cfg.mlp_width, cfg.hidden_size)

    def forward(self, x):
        return self.c_proj(F.silu(self.c_fc1(x)) * self.c_fc2(x))


# ---- The delta state. Here it is [batch, tokens, dv, d]: d innermost, so that every step below runs along
# contiguous rows. (Checkpoints order the pair as d, dv; the weights are transposed where they are used.)


class TokenConvolution(nn.Module):
    """Weights of a depthwise causal convolution over tokens, one row a channel of the state."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, kernel))


class TokenCompressor(nn.Module):
    def __init__(self, cfg: Config):
        super().__init__()
        self.dv, self.kernel = cfg.dv, cfg.ddl_state_shortconv_kernel_size
        self.shortconv = TokenConvolution(cfg.hidden_size * cfg.dv, self.kernel)
        self.read = nn.Parameter(torch.full((cfg.dv,), 1.0 / cfg.dv))

    def forward(self, X):
        w = self.shortconv.weight.unflatten(0, (-1, self.dv)) * self.read[:, None]  # [d, dv, kernel]
        out = 0
        for r in range(self.kernel):
            out = out + earlier((X * w[:, :, r].t()).sum(-2), self.kernel - 1 - r)
        return out


class ChannelCompressor(nn.Module):
    """Convolution over the value channels and the read vector, folded into one weight per (channel, feature)."""

    def __init__(self, cfg: Config, causal: bool):
        super().__init__()
        self.dv, self.kernel = cfg.dv, cfg.ddl_state_shortconv_kernel_size
        self.left = self.kernel - 1 if causal else (self.kernel - 1) // 2
        self.weight = nn.Parameter(torch.empty(cfg.hidden_size, self.kernel))
        self.read = nn.Parameter(torch.full((cfg.dv,), 1.0 / cfg.dv))

    def folded(self):
        """[dv, d]: what channel v of the state adds to the compressed vector."""
        toeplitz = self.read.new_zeros(self.kernel, self.dv, self.dv)
        for j in range(self.dv):
            for m in range(self.kernel):
                if 0 <= j + m - self.left < self.dv:
                    toeplitz[m, j + m - self.left, j] = 1.0
        return torch.einsum("mvj,j,im->vi", toeplitz, self.read, self.weight)

    def forward(self, X):
        return WeightedChannels.apply(X, self.folded())


class WeightedChannels(torch.autograd.Function):
    """(X * W).sum(-2) without the product in memory: the delta variants' speed is that of memory."""

    @staticmethod
    def forward(ctx, X, W):
        ctx.save_for_backward(X, W)
        out = X[..., 0, :] * W[0]
        for v in range(1, W.shape[0]):
            out.addcmul_(X[..., v, :], W[v])
        return out

    @staticmethod
    def backward(ctx, g):
        X, W = ctx.saved_tensors
        return g.unsqueeze(-2) * W, (g.unsqueeze(-2) * X).flatten(0, -3).sum(0)


class FirstChannel(nn.Module):
    """The compressor of a state with one value channel."""

    def forward(self, X):
        return X[..., 0, :]


class Expansion(nn.Module):
    """Token embeddings to a state: a causal convolution over tokens with dv outputs a feature."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.dv, self.kernel = cfg.dv, cfg.input_embed_shortconv_kernel_size
        self.conv = nn.Conv1d(cfg.hidden_size, cfg.hidden_size * cfg.dv, self.kernel,
                              groups=cfg.hidden_size, bias=False)

    def forward(self, e):
        w = self.conv.weight.squeeze(1).unflatten(0, (-1, self.dv))  # [d, dv, kernel]
        X = 0
        for r in range(self.kernel):
            X = X + earlier(e, self.kernel - 1 - r).unsqueeze(-2) * w[:, :, r].t()
        return X


class Rewrite(nn.Module):
    """X + r k (beta (v - k^T X)): forget what the state holds along k, write v there; r is the residual multiplier."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.eps, self.scale, self.sigmoid = cfg.ddl_k_eps, cfg.ddl_v_sigmoid_scale, cfg.ddl_v_sigmoid
        self.constant, self.multiplier = cfg.constant_v, cfg.residual_multiplier
        if cfg.ddl_beta_single_linear:
            self.beta = linear(cfg.hidden_size, 1, bias=True)
        else:
            self.beta_in = linear(cfg.hidden_size, cfg.ddl_beta_hidden_size)
            self.beta_out = linear(cfg.ddl_beta_hidden_size, 1, bias=True)
        self.v_proj = linear(cfg.hidden_size, cfg.dv, bias=True)

    def forward(self, X, h, x_in, c):
        h = h.float()
        k = h * torch.rsqrt(h.square().sum(-1, keepdim=True) + self.eps**2)
        gate = self.beta(c) if hasattr(self, "beta") else self.beta_out(torch.tanh(self.beta_in(c)))
        beta = 2 * self.multiplier * torch.sigmoid(gate.float())
        if self.constant is not None:
            v = torch.full_like(X[..., 0], self.constant)
        else:
            v = self.v_proj(x_in).float()
            if self.sigmoid:
                v = self.scale * torch.sigmoid(v)
        with torch.autocast(X.device.type, enabled=False):  # the state stays in float32
            flat, k = X.flatten(0, 1), k.flatten(0, 1)
            held = torch.bmm(flat, k.unsqueeze(-1)).squeeze(-1)  # k^T X, [tokens, dv]
            change = (beta * v).flatten(0, 1) - beta.flatten(0, 1) * held
            return torch.baddbmm(flat, change.unsqueeze(-1), k.unsqueeze(-2)).view_as(X)


class Block(nn.Module):
    def __init__(self, cfg: Config, causal_channels: bool):
        super().__init__()
        self.delta, self.multiplier = cfg.variant != "gpt", cfg.residual_multiplier
        eps = LN_EPS if self.delta else cfg.rms_norm_eps
        self.ln_1, self.ln_2 = RMSNorm(cfg.hidden_size, eps), RMSNorm(cfg.hidden_size, eps)
        self.attn, self.mlp = Attention(cfg), MLP(cfg)
        if self.delta:
            self.compress = compressor(cfg, causal_channels)
            self.ddl_attn, self.ddl_mlp = Rewrite(cfg), Rewrite(cfg)

    def forward(self, X, cos, sin):
        if not self.delta:
            X = X + self.multiplier * self.attn(self.ln_1(X), cos, sin)
            return X + self.multiplier * self.mlp(self.ln_2(X))
        x_in = self.compress(X)
        c = self.ln_1(x_in)
        X = self.ddl_attn(X, self.attn(c, cos, sin), x_in, c)
        x_in = self.compress(X)
        c = self.ln_2(x_in)
        return self.ddl_mlp(X, self.mlp(c), x_in, c)


def compressor(cfg: Config, causal_channels: bool) -> nn.Module:
    if cfg.variant == "vdim1":
        return FirstChannel()
    return TokenCompressor(cfg) if cfg.variant.startswith("tc") else ChannelCompressor(cfg, causal_channels)


class Model(nn.Module):
    """A decoder. `causal_channels` obeys ddl_state_dv_shortconv_causal as the accelerated code of 2b55f25 does, whose
    plain code ignores that key. With `tied` off the head is a matrix of its own, `lm_head.weight`."""

    def __init__(self, cfg: Config, causal_channels: bool = False, tied: bool = True):
        super().__init__()
        self.cfg = cfg
        causal_channels = cfg.channels_are_causal or (causal_channels and cfg.ddl_state_dv_shortconv_causal)
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(cfg.vocab_size, cfg.hidden_size),
            "h": nn.ModuleList(Block(cfg, causal_channels) for _ in range(cfg.num_hidden_layers))})
        if cfg.variant.endswith("ec"):
            self.input_embed = Expansion(cfg)
        if cfg.variant != "gpt":
            self.readout = compressor(cfg, causal_channels)
        self.ln_f = RMSNorm(cfg.hidden_size, cfg.rms_norm_eps if cfg.variant == "gpt" else LN_EPS)
        self.lm_head = None if tied else linear(cfg.hidden_size, cfg.vocab_size)
        self.rope = None  # cos and sin, grown on demand: not part of the checkpoint

    # ---- forward

    def rope_table(self, tokens: int, device):
        if self.rope is None or self.rope[0].shape[0] < tokens or self.rope[0].device != device:
            rot = self.transformer["h"][0].attn.rotary
            theta = self.cfg.rope_base ** (-torch.arange(0, rot, 2, dtype=torch.float64, device=device) / max(rot, 1))
            angle = torch.arange(max(tokens, 64), dtype=torch.float64, device=device)[:, None] * theta
            self.rope = (angle.cos().float()[:, None], angle.sin().float()[:, None])  # [tokens, 1, rot / 2]
        return self.rope[0][:tokens], self.rope[1][:tokens]

    def states(self, ids):
        """Yields the state after the input expansion, then after every block: [batch, tokens, (dv,) d]."""
        cos, sin = self.rope_table(ids.shape[1], ids.device)
        e = self.transformer["wte"](ids)
        if self.cfg.variant == "gpt":
            X = e
        elif self.cfg.variant.endswith("ec"):
            X = self.input_embed(e)
        else:
            X = e.unsqueeze(-2).expand(-1, -1, self.cfg.dv, -1)
        yield X
        for block in self.transformer["h"]:
            X = block(X, cos, sin)
            yield X

    def hidden(self, ids):
        """The normalised output vectors [batch, tokens, d], of which the logits are a linear map."""
        for X in self.states(ids):  # noqa: B007 (the last one is used)
            pass
        return self.ln_f(X if self.cfg.variant == "gpt" else self.readout(X))

    def logits(self, hidden):
        head = self.transformer["wte"] if self.lm_head is None else self.lm_head
        return F.linear(hidden, head.weight) * self.cfg.logit_scale

    def forward(self, ids):
        return self.logits(self.hidden(ids))

    # ---- weights

    @torch.no_grad()
    def initialise(self, seed: int) -> "Model":
        """The official initialisation."""
        g = torch.Generator().manual_seed(seed)
        own = dict(self.named_parameters())
        for name, spec in parameters(self.cfg).items():
            if spec.kind == "normal":
                own[name].normal_(0, spec.spread, generator=g)
            elif spec.kind == "uniform":
                own[name].uniform_(-spec.spread, spec.spread, generator=g)
            elif spec.kind == "last_tap":
                own[name].zero_()[..., -1] = 1
            else:
                own[name].fill_(spec.value)
        return self

    @staticmethod
    def load(folder, causal_channels: bool = False) -> "Model":
        """Reads a folder of any revision with safetensors, one file or shards, into float32."""
        folder = pathlib.Path(folder)
        return Model.of(json.loads((folder / "config.json").read_text()), read_safetensors(folder), causal_channels)

    @staticmethod
    def of(config: dict, tensors: dict[str, torch.Tensor], causal_channels: bool = False) -> "Model":
        """The model of a config.json and the tensors as a file holds them, from which variant and revision are inferred."""
        tensors = with_embedding(tensors)
        cfg = Config.from_checkpoint(config, {k: tuple(v.shape) for k, v in tensors.items()})
        tensors = own_tensors(tensors)
        head = tensors.pop("lm_head.weight", None)
        # Only the newest revision's code keeps a head that differs from the embedding.
        tied = head is None or cfg.revision != NEWEST or torch.equal(head, tensors["transformer.wte.weight"])
        if not tied:
            tensors["lm_head.weight"] = head
        with torch.device("meta"):
            model = Model(cfg, causal_channels, tied)
        model.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
        return model.eval()


# ---- tensors as files hold them


def read_safetensors(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    """All tensors of a folder's model.safetensors or of the shards that its index names, mapped from the files."""
    from safetensors.torch import load_file

    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists() and index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    return {k: v for name in names for k, v in load_file(folder / name).items()}


DERIVED = ("inv_freq", "_kernel_index", "_kernel_valid")  # buffers that some saves hold; the code makes them anew


def with_embedding(tensors: dict) -> dict:
    """The tensors without derived buffers, and with the tied embedding under its own name."""
    out = {k: v for k, v in tensors.items() if k.rpartition(".")[2] not in DERIVED}
    if "transformer.wte.weight" not in out and "lm_head.weight" in out:
        out["transformer.wte.weight"] = out.pop("lm_head.weight")
    return out


def own_tensors(tensors: dict) -> dict:
    """The tensors of a file under the names and in the shapes of this program: views."""
    layout = Layout.of({k: tuple(v.shape) for k, v in tensors.items()})
    out = {}
    for name, tensor in tensors.items():
        own, shape = layout.own(name, tuple(tensor.shape))
        out[own] = tensor.reshape(shape)
    return out


def stored_tensors(tensors: dict, cfg: Config) -> dict:
    """The tensors of this program under the names and in the shapes of the revision of `cfg`: views."""
    layout = Layout(cfg.variant, cfg.revision)
    out = {}
    for name, tensor in tensors.items():
        stored, shape = layout.stored(name, tuple(tensor.shape), cfg.hidden_size)
        out[stored] = tensor.reshape(shape)
    return out


# ---- comparison with golden files


@torch.no_grad()
def check(folder: pathlib.Path) -> tuple[str, float, int]:
    """Variant, largest difference of logits, hidden vectors and inner states, and wrong greedy tokens."""
    from safetensors.torch import load_file

    gold = load_file(folder / "golden.safetensors")
    runs = [("logits", Model.load(folder))]
    if "logits_accelerated" in gold:
        runs.append(("logits_accelerated", Model.load(folder, causal_channels=True)))
    model = runs[0][1]
    # The reference itself skips the shift for an input of one token; a decoder must not.
    shifted = model.cfg.use_k_shift or model.cfg.use_v_shift
    worst, wrong = 0.0, 0
    for key, m in runs:
        worst = max(worst, (m(gold["input_ids"].long()) - gold[key]).abs().max().item())
    for tag in ("", "_short", "_one"):
        ids = gold["input_ids" + tag].long()
        if tag == "_one" and shifted:
            continue
        worst = max(worst, (model(ids) - gold["logits" + tag]).abs().max().item(),
                    (model.hidden(ids) - gold["hidden" + tag]).abs().max().item())
        for want in gold["greedy" + tag].long().unbind(1):
            wrong += (model(ids)[:, -1].argmax(-1) != want).sum().item()
            ids = torch.cat([ids, want[:, None]], 1)
    states = list(model.states(gold["input_ids"].long()))
    for key, state in (("x_init", states[0]), ("x_block0", states[1]), ("x_last", states[-1])):
        if key in gold:
            state = state if state.dim() == 3 else state.transpose(-1, -2)
            worst = max(worst, (state.reshape(gold[key].shape) - gold[key]).abs().max().item())
    return model.cfg.variant, worst, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares this implementation with folders of golden files.")
    parser.add_argument("--check", nargs="+", metavar="DIR", required=True, type=pathlib.Path,
                        help="folders whose sub-folders hold config.json, model.safetensors and golden.safetensors")
    args = parser.parse_args()
    cases = sorted(p.parent for d in args.check for p in d.glob("*/golden.safetensors"))
    if not cases:
        parser.error(f"no */golden.safetensors under {', '.join(map(str, args.check))}")
    failed = 0
    for case in cases:
        variant, worst, wrong = check(case)
        ok = worst < 1e-4 and wrong == 0
        failed += not ok
        print(f"{case.name:32} {variant:6} difference {worst:.1e}  wrong greedy tokens {wrong}  {'ok' if ok else 'FAILED'}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
