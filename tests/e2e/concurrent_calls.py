"""Calls of different kinds and lengths, made one after another or all at once."""

import concurrent.futures
import random

from ddl_client import vectors

CALLS = 32
POOLINGS = ("last_token", "mean", "max", "none")


def make_calls(vocab_size, most_prompt, most_new):
    """A table of calls of different lengths: (kind, prompt or prompts, parameter)."""
    rng = random.Random(2026)

    def prompt():
        return [rng.randrange(vocab_size) for _ in range(rng.randint(1, most_prompt))]

    calls = []
    for i in range(CALLS):
        if i % 4 == 3:
            calls.append(("embed", [prompt() for _ in range(rng.randint(1, 3))],
                          POOLINGS[i // 4 % len(POOLINGS)]))
        else:
            calls.append(("stream" if i % 2 else "unary", prompt(),
                          rng.randint(most_new // 2, most_new)))
    return calls


def ask(client, call):
    """The answer in a form that compares exactly: token ids, or the vectors' bytes."""
    kind, prompt, parameter = call
    if kind == "embed":
        response = client.embed(prompt, pooling=parameter, encoding_format="bytes_f32le")
        return [rows.tobytes() for rows in vectors(response)]
    parameters = dict(max_tokens=parameter, temperature=0, ignore_eos=True)
    if kind == "unary":
        tokens = client.generate(prompt, **parameters).completions[0].tokens
    else:
        tokens = [token for delta in client.stream(prompt, **parameters) for token in delta.tokens]
    return [token.token_id for token in tokens]


def ask_together(client, calls):
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(lambda call: ask(client, call), calls))
