#!/usr/bin/env python3
"""How well running servers predict a text: bits per byte, through Score, as clients get it.

    tools/bits_per_byte.py --text book.txt bfloat16=127.0.0.1:8500 int8=127.0.0.1:8501

Each document's tokens are scored in windows of --window tokens; the first token of a window is given. Documents end at lines
"<|endoftext|>". With several servers the first is what the others are compared with, also token by token. Needs the project's
Python client.
"""
import argparse
import math
import pathlib
import sys

from ddl_client import Client

END = "<|endoftext|>"
WINDOWS_A_CALL = 8


def windows_of(client, text, length, limit):
    """Lists of token ids, and how many bytes each is beyond its first token."""
    windows = []
    for document in filter(None, map(str.strip, text.split(END))):
        [tokens] = client.tokenize([document])
        for start in range(0, len(tokens) - 1, length - 1):
            window = tokens[start:start + length]
            if len(window) > 1:
                windows.append(([token.id for token in window], sum(len(token.bytes) for token in window[1:])))
            if limit and sum(len(ids) for ids, _ in windows) >= limit:
                return windows
    return windows


def score(client, windows):
    """The log-probability of every token of the windows but their first ones."""
    logprobs = []
    for at in range(0, len(windows), WINDOWS_A_CALL):
        response = client.score([ids for ids, _ in windows[at:at + WINDOWS_A_CALL]])
        logprobs += [token.logprob for each in response.scores for token in each.tokens]
        print(f"{min(at + WINDOWS_A_CALL, len(windows))} of {len(windows)} windows", end="\r", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return logprobs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, required=True)
    parser.add_argument("--window", type=int, default=1024, help="tokens (default 1024)")
    parser.add_argument("--limit", type=int, default=0, help="stop after so many tokens (default: all of the text)")
    parser.add_argument("servers", nargs="+", metavar="NAME=ADDRESS")
    arguments = parser.parse_args()
    windows, reference = None, None
    for server in arguments.servers:
        name, separator, address = server.partition("=")
        if not separator:
            parser.error(f"{server!r} is not NAME=ADDRESS")
        with Client(address) as client:
            if windows is None:
                windows = windows_of(client, arguments.text.read_text(), arguments.window, arguments.limit)
                if not windows:
                    parser.error(f"{arguments.text} has no two tokens")
            logprobs = score(client, windows)
        num_bytes = sum(count for _, count in windows)
        bits = -sum(logprobs) / math.log(2)
        line = f"{name}: {bits / num_bytes:.4f} bits per byte of {num_bytes} bytes, {len(logprobs)} tokens"
        if reference is None:
            reference = bits, logprobs
        else:
            apart = sum(abs(mine - theirs) for mine, theirs in zip(logprobs, reference[1])) / len(logprobs)
            line += f"; {100 * (bits / reference[0] - 1):+.3f} %, log-probabilities {apart:.4f} apart on average"
        print(line, flush=True)


if __name__ == "__main__":
    main()
