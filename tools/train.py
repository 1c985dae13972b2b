#!/usr/bin/env python3
"""Trains a Deep Delta Learning model on a text file and writes a folder that the server can serve.

    tools/train.py --text book.txt --out models/mine

The text is UTF-8. A line "<|endoftext|>" may separate documents; a text without it is cut at empty lines into pieces
of about 16 kB. A share of the documents, chosen by the seed, is held out: nothing, the tokenizer included, is trained
on it, and the weights that are kept are those that predict it best.

The folder gets config.json, model.safetensors, tokenizer.json, loss.json, loss.png, and state.pt: with --resume and
the same other options an interrupted run continues from its last evaluation, to the same result. Ctrl-C stops a run
and writes the best weights so far.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor

# One thread an operation: the threads of the pool take whole micro-batches instead, so that none of them waits for
# another one at every operation, which is slow on a machine that does other things too. And without the MALLOC
# settings, glibc gives every large tensor back to the system and faults its pages in again: a third of the time.
SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
if __name__ == "__main__" and any(os.environ.get(k) != v for k, v in SETTINGS.items()):
    os.environ.update(SETTINGS)  # read when a process starts, so start again
    os.execv(sys.executable, [sys.executable, *sys.argv])

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ddl_config import NEWEST, REVISIONS, SIZES, VARIANTS, Config, ConfigError, apply_settings, count
from ddl_torch import Model, stored_tensors

END = "<|endoftext|>"
PIECE = 16_000  # characters of a piece of a text that is one document


class UsageError(Exception):
    """Something the caller can mend; the message says what."""


# ---- text


def documents(path: pathlib.Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"--text {path}: there is no such file")
    except UnicodeDecodeError as e:
        raise UsageError(f"--text {path}: not UTF-8 (byte {e.start}); convert it with iconv first")
    docs = [d.strip() for d in text.split(END)]
    docs = [d for d in docs if d]
    if len(docs) > 1:
        return docs
    pieces, size = [[]], 0
    for paragraph in (docs[0] if docs else "").split("\n\n"):
        pieces[-1].append(paragraph)
        size += len(paragraph)
        if size >= PIECE:
            pieces.append([])
            size = 0
    return ["\n\n".join(p) for p in pieces if p and any(p)]


def split(docs: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Training and held-out documents, each in the text's order."""
    if len(docs) < 2:
        raise UsageError(f"the text is too short to hold anything out: it has {len(docs)} document(s) of {PIECE} "
                         "characters; two are needed")
    total, held, size = sum(map(len, docs)), set(), 0
    for i in random.Random(seed).sample(range(len(docs)), len(docs) - 1):
        if size >= share * total:
            break
        held.add(i)
        size += len(docs[i])
    return [d for i, d in enumerate(docs) if i not in held], [d for i, d in enumerate(docs) if i in held]


def make_tokenizer(docs: list[str], vocab: int) -> Tokenizer:
    """A byte-level BPE with GPT-2's pre-tokenization: any text round-trips, spaces and all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(docs, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[END], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    return tokenizer


def load_tokenizer(args, train_docs: list[str]) -> Tokenizer:
    if args.tokenizer is None:
        return make_tokenizer(train_docs, args.vocab_size)
    try:
        tokenizer = Tokenizer.from_file(str(args.tokenizer))
    except Exception as e:
        raise UsageError(f"--tokenizer {args.tokenizer}: {e}")
    if tokenizer.token_to_id(END) is None:
        raise UsageError(f'--tokenizer {args.tokenizer}: it has no token "{END}"')
    return tokenizer


# ---- training


@dataclasses.dataclass
class Phase:
    context: int
    first_step: int


def phases(text: str, steps: int) -> list[Phase]:
    """"256:0.9,1024:0.1" as the step that each context length starts at."""
    try:
        parts = [(int(c), float(f)) for c, f in (p.split(":") for p in text.split(","))]
    except ValueError:
        raise UsageError(f'--contexts {text!r}: write LENGTH:SHARE,..., such as "256:0.9,1024:0.1"')
    if any(c < 2 or f <= 0 for c, f in parts) or not math.isclose(sum(f for _, f in parts), 1.0, abs_tol=1e-6):
        raise UsageError(f"--contexts {text!r}: lengths must be at least 2, shares above 0 and 1 in total")
    out, done = [], 0.0
    for context, share in parts:
        out.append(Phase(context, round(done * steps)))
        done += share
    return out


def learning_rate(step: int, args) -> float:
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    along = (step - args.warmup) / max(1, args.steps - args.warmup)
    return args.lr * (args.min_lr + (1 - args.min_lr) * 0.5 * (1 + math.cos(math.pi * along)))


def optimizer_for(model: Model, args) -> torch.optim.Optimizer:
    decay = [p for p in model.parameters() if p.dim() >= 2]
    other = [p for p in model.parameters() if p.dim() < 2]
    return torch.optim.AdamW([{"params": decay, "weight_decay": args.weight_decay},
                              {"params": other, "weight_decay": 0.0}], lr=args.lr, betas=(0.9, 0.98), fused=True)


def loss_of(model: Model, x, y, reduction="mean"):
    return F.cross_entropy(model(x).float().flatten(0, 1), y.flatten(), reduction=reduction)


def train_step(model, optimizer, pool, data, step: int, context: int, args) -> float:
    """One update. The batch depends on the seed and the step alone, and gradients are added up in the batch's order
    whichever thread is done first: the same run gives the same weights, resumed or not."""
    rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    rows = max(1, args.batch_tokens // context)
    at = torch.randint(0, len(data) - context, (rows,), generator=rng)
    batch = torch.stack([data[i:i + context + 1] for i in at])
    own = list(model.parameters())

    def work(part):
        with torch.autocast("cpu", torch.bfloat16, enabled=args.autocast):
            loss = loss_of(model, part[:, :-1], part[:, 1:]) * (len(part) / rows)
        return loss.item(), torch.autograd.grad(loss, own)

    total, sums = 0.0, None
    for loss, grads in pool.map(work, batch.split(max(1, args.micro_tokens // context))):
        total += loss
        if sums is None:
            sums = grads
        else:
            torch._foreach_add_(sums, grads)
    for p, g in zip(own, sums):
        p.grad = g
    torch.nn.utils.clip_grad_norm_(own, 1.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, args)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def bits_per_byte(model, pool, held: list[tuple[list[int], int]], context: int, end: int, autocast: bool, limit=None) -> float:
    """Of held-out documents, each a list of tokens and a length in bytes. Every document starts after an end-of-text
    token and is read in windows of `context` tokens that do not see each other, so the first tokens of each window
    are predicted from little. `limit`: how many tokens to read at most."""
    windows, size, seen = [], 0.0, 0
    for ids, length in held:
        row = torch.tensor([end] + ids)
        for at in range(0, len(ids), context):
            if limit is not None and seen >= limit:
                break
            windows.append(row[at:at + context + 1])
            seen += len(windows[-1]) - 1
            size += length * (len(windows[-1]) - 1) / len(ids)

    @torch.no_grad()
    def work(part):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return loss_of(model, part[None, :-1], part[None, 1:], "sum").item()

    return sum(pool.map(work, windows)) / math.log(2) / size


# ---- files


def rounded(weights: dict, dtype: torch.dtype) -> dict:
    return {k: v.to(dtype).contiguous() for k, v in weights.items()}


def write_checkpoint(out: pathlib.Path, cfg: Config, weights: dict, dtype: str):
    # Through write_bytes: save_file makes a file that only its owner may read, and a server may be another user.
    (out / "model.safetensors").write_bytes(
        save(stored_tensors(rounded(weights, getattr(torch, dtype)), cfg), metadata={"format": "pt"}))
    (out / "config.json").write_text(json.dumps(cfg.to_json(dtype), indent=1) + "\n")


def write_curve(out: pathlib.Path, log: dict):
    (out / "loss.json").write_text(json.dumps(log, indent=1) + "\n")
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, left = plt.subplots(figsize=(8, 4.5), dpi=80)
    right = left.twinx()
    left.plot(*zip(*log["loss"]), color="tab:blue", linewidth=0.8, label="training loss (nats per token)")
    right.plot(*zip(*log["held_out"]), color="tab:red", marker="o", markersize=3, label="held-out bits per byte")
    left.set(xlabel="step", ylabel="training loss, nats per token")
    right.set_ylabel("held-out bits per byte")
    lines = left.get_lines() + right.get_lines()
    left.legend(lines, [line.get_label() for line in lines])
    left.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(out / "loss.png")
    plt.close(figure)


def save_state(path: pathlib.Path, state: dict):
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)  # never half a state


# What must be the same for a run to be continued.
SAME = ("variant", "revision", "contexts", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "ddl_value_channels", "held_out", "seed", "steps", "batch_tokens", "lr", "warmup", "min_lr", "weight_decay")


def identity(args, cfg: Config, data: torch.Tensor) -> dict:
    options = vars(args) | dataclasses.asdict(cfg)
    return {k: options[k] for k in SAME} | {"training_tokens": len(data)}


def resumed(path: pathlib.Path, wanted: dict) -> dict:
    state = torch.load(path, weights_only=True)
    state["identity"].setdefault("revision", "2b55f25")  # runs before there was a choice
    differ = [f"{k} {state['identity'].get(k)!r} there, {v!r} here" for k, v in wanted.items() if state["identity"].get(k) != v]
    if differ:
        raise UsageError(f"--resume: {path} is of another run: " + "; ".join(differ))
    return state


# ---- the command


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--text", type=pathlib.Path, required=True, help="UTF-8 text to train on")
    p.add_argument("--out", type=pathlib.Path, required=True, help="folder to write; made if missing")
    p.add_argument("--resume", action="store_true", help="continue the run in --out from its state.pt")

    g = p.add_argument_group("model (defaults: the demo model's, about 7 million parameters)")
    g.add_argument("--variant", choices=VARIANTS, default="ccec",
                   help="gpt: no delta; vdim1, tc, tcec, cc, ccec: the delta variants (default ccec)")
    g.add_argument("--revision", choices=REVISIONS, default=NEWEST,
                   help=f"of the official code, whose initialisation and checkpoint format this has (default {NEWEST})")
    g.add_argument("--size", choices=("small", "medium"), help="dimensions of the paper, in place of the next four")
    g.add_argument("--hidden-size", type=int, default=288, metavar="N", help="default 288")
    g.add_argument("--layers", dest="num_hidden_layers", type=int, default=6, metavar="N", help="default 6")
    g.add_argument("--heads", dest="num_attention_heads", type=int, default=4, metavar="N", help="default 4")
    g.add_argument("--head-dim", type=int, default=64, metavar="N", help="default 64; heads x head-dim need not be hidden-size")
    g.add_argument("--value-channels", dest="ddl_value_channels", type=int, default=4, metavar="N",
                   help="of the state, for tc, tcec, cc, ccec (default 4)")
    g.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                   help='any other key of config.json, its value as JSON, e.g. --set rope_ratio=0.5 --set k_activation=\'"silu"\'')
    g.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="tokens of the tokenizer (default 4096)")
    g.add_argument("--tokenizer", type=pathlib.Path, metavar="FILE", help="use this tokenizer.json instead of training one")
    g.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the written weights (default bfloat16)")

    g = p.add_argument_group("training")
    g.add_argument("--steps", type=int, default=1000, metavar="N", help="updates (default 1000)")
    g.add_argument("--batch-tokens", type=int, default=4096, metavar="N", help="tokens of an update (default 4096)")
    g.add_argument("--micro-tokens", type=int, default=512, metavar="N",
                   help="tokens that a thread takes at once, at least one context (default 512); decides memory and speed")
    g.add_argument("--contexts", default="256:0.9,1024:0.1", metavar="LENGTH:SHARE,...",
                   help="context lengths and their shares of the steps, in order (default 256:0.9,1024:0.1); "
                        "the longest becomes the model's block_size")
    g.add_argument("--lr", type=float, default=2e-3, metavar="X", help="largest learning rate (default 2e-3)")
    g.add_argument("--warmup", type=int, default=100, metavar="N", help="steps of linear warm-up (default 100)")
    g.add_argument("--min-lr", type=float, default=0.05, metavar="X", help="last learning rate as a share of the largest (default 0.05)")
    g.add_argument("--weight-decay", type=float, default=0.1, metavar="X", help="of matrices (default 0.1)")
    g.add_argument("--held-out", type=float, default=0.05, metavar="X", help="share of the text held out (default 0.05)")
    g.add_argument("--eval-every", type=int, default=100, metavar="N", help="steps between evaluations (default 100)")
    g.add_argument("--eval-tokens", type=int, default=30_000, metavar="N",
                   help="held-out tokens that an evaluation reads; the last one reads all (default 30000)")
    g.add_argument("--seed", type=int, default=1, metavar="N", help="of the weights, the batches and the split (default 1)")
    g.add_argument("--threads", type=int, metavar="N", help="threads (default: one a core)")
    g.add_argument("--float32", dest="autocast", action="store_false", help="compute in float32 instead of bfloat16 autocast")
    args = p.parse_args(argv)
    for key, low, high in (("steps", 1, None), ("batch_tokens", 2, None), ("micro_tokens", 1, None), ("vocab_size", 257, None),
                           ("warmup", 1, None), ("eval_every", 1, None), ("held_out", 1e-6, 0.5), ("min_lr", 0, 1)):
        value = getattr(args, key)
        if value < low or (high is not None and value > high):
            p.error(f"--{key.replace('_', '-')} {value}: must be at least {low}" + (f" and at most {high}" if high else ""))
    return args


def config_for(args, vocab: int) -> Config:
    values = {k: getattr(args, k) for k in ("variant", "revision", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
                                            "ddl_value_channels")}
    values |= SIZES[args.size] if args.size else {}
    values |= {"vocab_size": vocab, "block_size": max(p.context for p in phases(args.contexts, args.steps))}
    return Config(**apply_settings(values, args.set))


def train(args) -> int:
    torch.manual_seed(args.seed)
    pool = ThreadPoolExecutor(args.threads or os.cpu_count())
    plan = phases(args.contexts, args.steps)
    docs, held_docs = split(documents(args.text), args.held_out, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    state_path = args.out / "state.pt"
    if state_path.exists() and not args.resume:
        raise UsageError(f"{state_path} is there from an earlier run: continue it with --resume, or delete it")
    if args.resume and not state_path.exists():
        raise UsageError(f"--resume: there is no {state_path}")
    if args.resume and args.tokenizer is None:  # that of the run
        args.tokenizer = args.out / "tokenizer.json"
    tokenizer = load_tokenizer(args, docs)
    end = tokenizer.token_to_id(END)
    cfg = config_for(args, tokenizer.get_vocab_size())
    data = torch.tensor([t for e in tokenizer.encode_batch(docs) for t in [end] + e.ids])
    held = [(e.ids, len(d.encode())) for e, d in zip(tokenizer.encode_batch(held_docs), held_docs)]
    if len(data) <= cfg.block_size:
        raise UsageError(f"the text is too short: {len(data)} tokens to train on, and a context is {cfg.block_size}; "
                         "use more text or shorter --contexts")
    state = resumed(state_path, identity(args, cfg, data)) if args.resume else None
    tokenizer.save(str(args.out / "tokenizer.json"))

    model = Model(cfg).initialise(args.seed)
    optimizer = optimizer_for(model, args)
    log = {"loss": [], "held_out": []}
    step, best, spent = 0, (math.inf, 0), 0.0
    best_weights = {k: v.clone() for k, v in model.state_dict().items()}
    if state:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        best_weights = state["best_weights"]
        step, best, spent, log = state["step"], tuple(state["best"]), state["seconds"], state["log"]
    print(f"{cfg.variant}, {count(cfg):,} parameters, vocabulary {cfg.vocab_size}; {len(docs)} documents, {len(data):,} "
          f"tokens to train on; {len(held)} documents, {sum(n for _, n in held):,} bytes held out", flush=True)

    began = time.monotonic() - spent
    recent, window, interrupted = [], (time.monotonic(), step), False
    try:
        while step < args.steps:
            context = [p.context for p in plan if p.first_step <= step][-1]
            recent.append(train_step(model, optimizer, pool, data, step, context, args))
            step += 1
            if step % 10 == 0 or step == args.steps:
                now = time.monotonic()
                rate = (step - window[1]) / (now - window[0])
                log["loss"].append([step, round(sum(recent) / len(recent), 4)])
                print(f"step {step}/{args.steps}  loss {log['loss'][-1][1]:.3f}  {rate * args.batch_tokens:.0f} tokens/s  "
                      f"context {context}  left {(args.steps - step) / rate / 60:.0f} min", flush=True)
                recent, window = [], (now, step)
            if step % args.eval_every == 0 or step == args.steps:
                score = bits_per_byte(model, pool, held, context, end, args.autocast, args.eval_tokens)
                log["held_out"].append([step, round(score, 4)])
                if score < best[0]:
                    best = (score, step)
                    best_weights = {k: v.clone() for k, v in model.state_dict().items()}
                print(f"step {step}/{args.steps}  held-out bits per byte {score:.3f}  best {best[0]:.3f} at step {best[1]}  "
                      f"{(time.monotonic() - began) / 60:.1f} min so far", flush=True)
                save_state(state_path, {"identity": identity(args, cfg, data), "model": model.state_dict(), "step": step,
                                        "optimizer": optimizer.state_dict(), "best": list(best), "log": log,
                                        "best_weights": best_weights, "seconds": time.monotonic() - began})
                window = (time.monotonic(), step)
    except KeyboardInterrupt:
        interrupted = True
        print(f"\nstopped at step {step}; writing the weights of step {best[1]}", flush=True)

    minutes = (time.monotonic() - began) / 60
    write_checkpoint(args.out, cfg, best_weights, args.dtype)
    model.load_state_dict({k: v.float() for k, v in rounded(best_weights, getattr(torch, args.dtype)).items()})
    final = bits_per_byte(model, pool, held, cfg.block_size, end, autocast=False)
    log["result"] = {"step": best[1], "held_out_bits_per_byte": round(final, 4), "dtype": args.dtype, "minutes": round(minutes, 1),
                     "parameters": count(cfg), "training_tokens": len(data), "held_out_bytes": sum(n for _, n in held)}
    write_curve(args.out, log)
    print(f"{args.out}: weights of step {best[1]} in {args.dtype}, held-out bits per byte {final:.4f}, {minutes:.1f} minutes")
    return 130 if interrupted else 0


def main() -> int:
    args = parse()
    try:
        return train(args)
    except (UsageError, ConfigError) as e:
        print(f"train.py: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
