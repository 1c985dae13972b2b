#!/usr/bin/env python3
"""Writes expected.json: what the demo model must say, for the server's tests.

    tools/make_expected.py --model models/ddl-demo

Greedy continuations, as token ids and text, computed in float32 from the weights as they are stored. Of the prompts
below those are kept whose closest decision is clearest (the difference of the two largest logits, `least_gap`), so
that rounding cannot excuse another token. And the final hidden vectors of a short text, for embeddings.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer

from ddl_torch import Model

TEXT = "She was very happy."
PROMPTS = [
    "It was a fine", "The letter", "She had", "Mr. Darcy", "Mr. Knightley", "The next day", "I am very glad", "There was no",
    "Elizabeth could not", "The house was", "When the dinner", "He walked", "\"My dear", "In the evening", "Nothing could be more",
    "Her sister", "The rain", "\"What can you", "A few weeks", "Captain Wentworth", "Every body", "Mrs. Bennet", "Miss Bates",
    "Lady Russell", "Sir Thomas", "Colonel Brandon was", "Fanny was", "Anne had", "Emma was not", "Catherine", "They were all",
    "It is not", "You cannot", "He was a", "I have not", "Marianne", "Mr. and Mrs.", "After a short", "As soon as", "It was not till",
    "The ladies", "\"Oh! yes,\"", "Edward", "John Thorpe", "Her mother", "His father", "London", "Bath", "The ball", "The morning",
    "To be sure", "At last", "She could not", "\"I do not", "Mr. Collins", "Jane", "Harriet", "I wish you", "She looked", "The carriage",
]


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
    p.add_argument("--prompts", type=int, default=8, help="how many to keep (default 8)")
    p.add_argument("--tokens", type=int, default=24, help="of a continuation (default 24)")
    p.add_argument("--least-gap", type=float, default=0.05, help="least difference allowed (default 0.05)")
    args = p.parse_args()
    model, tokenizer = Model.load(args.model), Tokenizer.from_file(str(args.model / "tokenizer.json"))
    cases = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        new, gap = greedy(model, ids, args.tokens)
        cases.append({"prompt": prompt, "prompt_ids": ids, "ids": new, "text": tokenizer.decode(new), "least_gap": round(gap, 4)})
    cases = sorted(cases, key=lambda c: -c["least_gap"])[:args.prompts]
    if cases[-1]["least_gap"] < args.least_gap:
        print(f"make_expected.py: only {sum(c['least_gap'] >= args.least_gap for c in cases)} of {len(PROMPTS)} prompts have a "
              f"least gap of {args.least_gap}; add prompts", file=sys.stderr)
        return 1
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
