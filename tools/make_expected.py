#!/usr/bin/env python3
"""Writes expected.json: what the demo model must say, for the server's tests.

    tools/make_expected.py --model models/ddl-demo --text build/austen.txt

Greedy continuations, as token ids and text, computed in float32 from the weights as they are stored. The prompts are
the first words of held-out paragraphs; those are kept whose closest decision is clearest (the difference of the two
largest logits, `least_gap`), so that rounding cannot excuse another token, and no two that go on alike. And the final
hidden vectors of a short text, for embeddings.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer

from ddl_torch import Model
from train import documents, split

TEXT = "She was very happy."
OWN = 6  # last tokens of a continuation that no other may share
OPENING = 4  # words of a paragraph that make a prompt


def openings(text: pathlib.Path, held_out: float, seed: int) -> list[str]:
    """The first words of the paragraphs that were held out in training."""
    found = {}
    for doc in split(documents(text), held_out, seed)[1]:
        for paragraph in doc.split("\n\n"):
            words = paragraph.split(" ")
            if len(words) > 2 * OPENING:
                found[" ".join(words[:OPENING])] = None
    return list(found)


@torch.no_grad()
def greedy(model: Model, ids: list[int], tokens: int) -> tuple[list[int], float]:
    """The continuation, and the least difference between the two largest logits on the way."""
    out, least = list(ids), float("inf")
    for _ in range(tokens):
        top = model(torch.tensor([out]))[0, -1].topk(2)
        least = min(least, (top.values[0] - top.values[1]).item())
        out.append(top.indices[0].item())
    return out[len(ids):], least


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, required=True, help="folder of the model; gets expected.json")
    p.add_argument("--text", type=pathlib.Path, required=True, help="the text it was trained on")
    p.add_argument("--held-out", type=float, default=0.05, help="as in training (default 0.05)")
    p.add_argument("--seed", type=int, default=1, help="as in training (default 1)")
    p.add_argument("--candidates", type=int, default=300, help="prompts to try (default 300)")
    p.add_argument("--prompts", type=int, default=8, help="how many to keep (default 8)")
    p.add_argument("--tokens", type=int, default=24, help="of a continuation (default 24)")
    p.add_argument("--least-gap", type=float, default=0.05, help="least difference allowed (default 0.05)")
    args = p.parse_args()
    model, tokenizer = Model.load(args.model), Tokenizer.from_file(str(args.model / "tokenizer.json"))
    prompts = openings(args.text, args.held_out, args.seed)[:args.candidates]
    cases = []
    for prompt in prompts:
        ids = tokenizer.encode(prompt).ids
        new, gap = greedy(model, ids, args.tokens)
        cases.append({"prompt": prompt, "prompt_ids": ids, "ids": new, "text": tokenizer.decode(new), "least_gap": round(gap, 4)})
    kept = []
    for case in sorted(cases, key=lambda c: -c["least_gap"]):
        alike = any(case["ids"][-OWN:] == other["ids"][-OWN:] for other in kept)
        if len(kept) < args.prompts and not alike and case["least_gap"] >= args.least_gap:
            kept.append(case)
    if len(kept) < args.prompts:
        print(f"make_expected.py: only {len(kept)} of {len(prompts)} prompts have a least gap of {args.least_gap} and a "
              "continuation of their own; raise --candidates", file=sys.stderr)
        return 1
    cases = kept
    ids = tokenizer.encode(TEXT).ids
    with torch.no_grad():
        vectors = model.hidden(torch.tensor([ids]))[0]
    hidden = {"text": TEXT, "ids": ids, "vectors": [[round(x, 5) for x in v] for v in vectors.tolist()]}
    lines = [json.dumps(c) for c in cases]
    rows = [json.dumps(v) for v in hidden.pop("vectors")]
    (args.model / "expected.json").write_text(
        '{"greedy": [\n' + ",\n".join(lines) + '\n],\n"hidden": ' + json.dumps(hidden)[:-1] + ', "vectors": [\n' + ",\n".join(rows) + "\n]}}\n")
    for c in cases:
        print(f"{c['least_gap']:.3f}  {c['prompt']} |{c['text']!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
