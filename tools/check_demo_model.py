#!/usr/bin/env python3
"""Measures a model of English text: how well it predicts held-out text, and whether what it writes is fit to show.

    tools/check_demo_model.py --model models/ddl-demo --text build/austen.txt

Prints held-out bits per byte of the weights as they are stored, the share of words in 200 completions that are known
words (of Debian's wamerican or of the corpus), and how many completions fall into a loop: the same 8 words twice in
a row, or three times anywhere. Exits with 1 if a goal is missed. The completions have fixed seeds.
"""
from __future__ import annotations

import argparse
import json
import pathlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from tokenizers import Tokenizer

from ddl_torch import Model
from train import END, bits_per_byte, documents, split

PROMPTS = [
    "It was a fine morning in", "The letter was from", "She had always believed", "Mr. Knightley was", "The next day",
    "\"I am very glad,\" said", "There was no one in the room but", "Elizabeth could not help", "The house was",
    "When the dinner was over,", "He walked towards the window, and", "\"My dear Emma,", "In the evening they all",
    "Nothing could be more", "Her sister looked at her", "The rain had", "\"What can you mean", "A few weeks afterwards",
    "Captain Wentworth had", "Every body agreed that",
]
WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)*")
LOOP = 8  # words


def words(text: str) -> list[str]:
    return [w.lower().replace("’", "'") for w in WORD.findall(text)]


def loops(text: str) -> bool:
    w = words(text)
    grams = [tuple(w[i:i + LOOP]) for i in range(len(w) - LOOP + 1)]
    again = any(grams[i] == grams[i + LOOP] for i in range(len(grams) - LOOP))
    return again or any(grams.count(g) >= 3 for g in set(grams))


def known(word: str, dictionary: set[str]) -> bool:
    return word in dictionary or (word.endswith("'s") and word[:-2] in dictionary)


@torch.no_grad()
def complete(model: Model, prompt: list[int], seeds: list[int], tokens: int, temperature: float, top_p: float,
             end: int) -> list[list[int]]:
    """One completion a seed, all of the same prompt; an end-of-text token ends one."""
    rngs = [torch.Generator().manual_seed(s) for s in seeds]
    ids = torch.tensor([prompt] * len(seeds))
    for _ in range(tokens):
        logits = model.logits(model.hidden(ids)[:, -1]) / temperature
        probs, order = torch.softmax(logits, -1).sort(-1, descending=True)
        probs = torch.where(probs.cumsum(-1) - probs < top_p, probs, 0.0)
        choice = torch.stack([torch.multinomial(p, 1, generator=g) for p, g in zip(probs, rngs)])
        ids = torch.cat([ids, order.gather(-1, choice)], 1)
    out = []
    for row in ids[:, len(prompt):].tolist():
        out.append(row[:row.index(end)] if end in row else row)
    return out


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=pathlib.Path, required=True, help="folder that train.py wrote")
    p.add_argument("--text", type=pathlib.Path, required=True, help="the text it was trained on")
    p.add_argument("--held-out", type=float, default=0.05, help="as in training (default 0.05)")
    p.add_argument("--seed", type=int, default=1, help="as in training (default 1)")
    p.add_argument("--dictionary", type=pathlib.Path, default="/usr/share/dict/american-english",
                   help="one word a line (default: that of Debian's wamerican)")
    p.add_argument("--completions", type=int, default=200, help="default 200")
    p.add_argument("--tokens", type=int, default=120, help="of a completion (default 120)")
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--top-p", type=float, default=0.95)
    p.add_argument("--max-bits", type=float, default=2.2, help="goal: held-out bits per byte at most (default 2.2)")
    p.add_argument("--min-known", type=float, default=0.95, help="goal: share of known words at least (default 0.95)")
    p.add_argument("--write", type=pathlib.Path, metavar="FILE", help="write the completions as JSON")
    args = p.parse_args()
    if not args.dictionary.is_file():
        p.error(f"{args.dictionary} is missing: install wamerican or name another list with --dictionary")

    torch.set_num_threads(1)
    model = Model.load(args.model)
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    docs = documents(args.text)
    held = [(tokenizer.encode(d).ids, len(d.encode())) for d in split(docs, args.held_out, args.seed)[1]]
    with ThreadPoolExecutor() as pool:
        bits = bits_per_byte(model, pool, held, model.cfg.block_size, end, autocast=False)
        print(f"held-out bits per byte: {bits:.4f} ({sum(n for _, n in held)} bytes; goal: at most {args.max_bits})", flush=True)

        seeds = [list(range(i, args.completions, len(PROMPTS))) for i in range(len(PROMPTS))]
        jobs = [pool.submit(complete, model, tokenizer.encode(prompt).ids, s, args.tokens, args.temperature, args.top_p, end)
                for prompt, s in zip(PROMPTS, seeds) if s]
        texts = [(prompt, seed, tokenizer.decode(ids)) for prompt, s, job in zip(PROMPTS, seeds, jobs)
                 for seed, ids in zip(s, job.result())]

    dictionary = set(words(args.dictionary.read_text(encoding="utf-8"))) | {w for d in docs for w in words(d)}
    total, strange, looping = 0, [], 0
    for prompt, _, text in texts:
        found = words(prompt + text)[len(words(prompt)):-1]  # the last one may be cut short
        total += len(found)
        strange += [w for w in found if not known(w, dictionary)]
        looping += loops(text)
    share = 1 - len(strange) / max(total, 1)
    print(f"known words: {100 * share:.2f} % of {total} in {len(texts)} completions (goal: at least {100 * args.min_known:g} %)")
    print(f"  unknown, for example: {', '.join(strange[:20])}")
    print(f"looping completions: {looping} of {len(texts)} (goal: none)")
    if args.write:
        args.write.write_text(json.dumps([{"prompt": a, "seed": b, "text": c} for a, b, c in texts], indent=1) + "\n")
    good = bits <= args.max_bits and share >= args.min_known and looping == 0
    print("all goals met" if good else "A GOAL IS MISSED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
