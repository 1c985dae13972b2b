#!/usr/bin/env python3
"""Writes a checkpoint with random weights, at the official initialisation: for tests, benchmarks and trials.

    tools/make_random_checkpoint.py --size small --out /tmp/small                     # the paper's 124 M parameters
    tools/make_random_checkpoint.py --variant tc --hidden-size 64 --layers 2 --out /tmp/tc

It says nothing sensible, but it costs a server exactly what a trained one of the same size does. Needs numpy only.
The folder gets config.json and model.safetensors, and a tokenizer.json if --tokenizer names one to copy.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
import zlib

import numpy as np

from ddl_config import NEWEST, REVISIONS, SIZES, VARIANTS, Config, ConfigError, Layout, Parameter, apply_settings, count, parameters
from safetensors_writer import write_safetensors

DTYPES = {"float32": "F32", "bfloat16": "BF16"}


def initial(name: str, spec: Parameter, seed: int) -> np.ndarray:
    """The tensor's initial value in float32. It depends on its name, so a tensor is the same in every variant."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if spec.kind == "normal":
        return rng.standard_normal(spec.shape, np.float32) * np.float32(spec.spread)
    if spec.kind == "uniform":
        return rng.uniform(-spec.spread, spec.spread, spec.shape).astype(np.float32)
    if spec.kind == "last_tap":
        out = np.zeros(spec.shape, np.float32)
        out[..., -1] = 1
        return out
    return np.full(spec.shape, spec.value, np.float32)


def encoded(x: np.ndarray, dtype: str) -> bytes:
    if dtype == "float32":
        return x.astype("<f4").tobytes()
    bits = x.astype("<f4").view(np.uint32)  # to bfloat16: the upper half, rounded to nearest, ties to even
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_weights(path: pathlib.Path, cfg: Config, dtype: str, seed: int):
    layout, specs, own = Layout(cfg.variant, cfg.revision), parameters(cfg), {}
    shapes = {}
    for name, spec in specs.items():
        stored, shape = layout.stored(name, spec.shape, cfg.hidden_size)
        shapes[stored], own[stored] = shape, name
    write_safetensors(path, shapes, DTYPES[dtype], lambda stored: encoded(initial(own[stored], specs[own[stored]], seed), dtype))


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=pathlib.Path, required=True, help="folder to write; made if missing")
    p.add_argument("--variant", choices=VARIANTS, default="ccec", help="default ccec, the paper's DDL")
    p.add_argument("--revision", choices=REVISIONS, default=NEWEST,
                   help=f"of the official code, whose initialisation and checkpoint format this has (default {NEWEST})")
    p.add_argument("--size", choices=SIZES, default="tiny",
                   help="tiny: 2 layers of width 32, vocabulary 256; small, medium: the paper's, vocabulary 50304 "
                        "(default tiny); the options below change single dimensions of it")
    for flag, key in (("--hidden-size", "hidden_size"), ("--layers", "num_hidden_layers"), ("--heads", "num_attention_heads"),
                      ("--head-dim", "head_dim"), ("--vocab-size", "vocab_size"), ("--block-size", "block_size"),
                      ("--value-channels", "ddl_value_channels")):
        p.add_argument(flag, dest=key, type=int, metavar="N")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                   help="any other key of config.json, its value as JSON, e.g. --set use_output_gate=true")
    p.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    p.add_argument("--tokenizer", type=pathlib.Path, metavar="FILE",
                   help="tokenizer.json to copy beside the weights; without one a server takes token ids only")
    return p.parse_args(argv)


def config_for(args) -> Config:
    values = {"variant": args.variant, "revision": args.revision} | SIZES[args.size]
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "vocab_size", "block_size",
                "ddl_value_channels"):
        if getattr(args, key) is not None:
            values[key] = getattr(args, key)
    values = apply_settings(values, args.set)
    return Config(**values)


def main(argv=None) -> int:
    args = parse(argv)
    if args.seed < 0:
        print(f"make_random_checkpoint.py: --seed {args.seed}: must not be negative", file=sys.stderr)
        return 2
    try:
        cfg = config_for(args)
        args.out.mkdir(parents=True, exist_ok=True)
        if args.tokenizer:
            shutil.copyfile(args.tokenizer, args.out / "tokenizer.json")
    except (ConfigError, OSError) as e:
        print(f"make_random_checkpoint.py: {e}", file=sys.stderr)
        return 2
    write_weights(args.out / "model.safetensors", cfg, args.dtype, args.seed)
    (args.out / "config.json").write_text(json.dumps(cfg.to_json(args.dtype), indent=1) + "\n")
    print(f"{args.out}: {cfg.variant}, {count(cfg):,} parameters, {args.dtype}, as the official code writes it at {cfg.revision}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
