"""The bundled model with default flags, by each instruction set of the processor: the same bits alone
and in company, whatever its size, after prefix hits, in chunks, preempted, scored as decoded,
embedded in any batch."""

import concurrent.futures
import random
import re
import struct

import pytest

from ddl_client import vectors
from server_process import ROOT, Server, kv_bytes_per_block, run

MODEL = ROOT / "models" / "ddl-demo"
INSTRUCTION_SETS = ("auto", "portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated")
SLOW = ("portable", "amx_emulated")
GROWING, GROWN, CONTEXT = 12, 72, 176  # requests, tokens of each, and what the longest has room in
SIZES = (2, 5, 7, 17, 64)
WORDS = ("the carriage sister letter morning dinner Miss Bennet had been very happy to see her in "
         "town after a long walk with Mr. Darcy and his friend, who said nothing at all").split()


def bits(number):
    return struct.pack("<f", number)


def prompts(count):
    """Some share what they begin with, so that the prefix cache has something to find."""
    rng = random.Random(11)
    stems = [" ".join(rng.choice(WORDS) for _ in range(words)) for words in (20, 45)]
    texts = []
    for i in range(count):
        own = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 30)))
        texts.append(f"{stems[i % 2]} {own}" if i % 3 else own)
    return texts


def completion(client, prompt, seed, tokens):
    answer = client.generate(prompt, seed=seed, max_tokens=tokens, logprobs=2, ignore_eos=True,
                             temperature=0 if seed % 4 == 0 else 0.9)
    return [(token.token_id, bits(token.logprob)) for token in answer.completions[0].tokens]


def together(client, texts, size, tokens):
    with concurrent.futures.ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda i: completion(client, texts[i], i, tokens), range(len(texts))))


def embeddings(client, texts, pooling):
    """The bytes of each text's vector."""
    return [vector.tobytes() for vector in vectors(client.embed(texts, pooling=pooling))]


def skip_unless_supported(flag):
    code, _, err = run(f"--model={MODEL}", flag, "--check")
    if code == 2 and re.search("the processor lacks|the operating system refuses AMX", err):
        pytest.skip(err.strip().splitlines()[-1])
    assert code == 0, err


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_company_changes_nothing(instruction_set):
    count, tokens = (12, 12) if instruction_set in SLOW else (64, 24)
    texts = prompts(count)
    flag = f"--instruction_set={instruction_set}"
    skip_unless_supported(flag)
    with Server(MODEL, flag, "--prefix_cache=false") as server:
        alone = [completion(server.client, text, i, tokens) for i, text in enumerate(texts)]
        grown = [completion(server.client, texts[i], i, GROWN) for i in range(GROWING)]
        embedded = {pooling: [embeddings(server.client, [text], pooling)[0] for text in texts[:45]]
                    for pooling in ("last_token", "mean")}
    assert len({token for answer in alone for token, _ in answer}) > 30, "too monotonous"

    with Server(MODEL, flag) as server:
        for size in SIZES:  # from the second on prompts are found in the prefix cache
            found = together(server.client, texts, size, tokens)
            different = [i for i in range(count) if found[i] != alone[i]]
            assert not different, f"{size} at a time"
        assert server.scrape().value("ddl_prefix_cache_hit_tokens_total") > 0
        for pooling, expected in embedded.items():
            for size in (1, *SIZES):
                for first in range(0, len(expected), size):
                    batch = texts[first:min(first + size, len(expected))]
                    found = embeddings(server.client, batch, pooling)
                    assert found == expected[first:first + size], f"{pooling}, {size} at a time"
        for i in range(0, count, 4):  # greedy ones, scored
            ids = [token for token, _ in alone[i]]
            prompt_ids = [token.id for token in server.client.tokenize([texts[i]])[0]]
            [scored] = server.client.score([prompt_ids + ids]).scores
            logprobs = [bits(token.logprob) for token in scored.tokens[-len(ids):]]
            assert logprobs == [logprob for _, logprob in alone[i]], f"score {i}"

    # The cache holds two of the longest requests, and more begin: prompts in chunks, preemptions.
    with Server(MODEL, flag, f"--max_context_length={CONTEXT}",
                f"--kv_cache_memory={2 * CONTEXT // 16 * kv_bytes_per_block(MODEL)}",
                "--max_running_sequences=16", "--max_step_tokens=24") as server:
        found = together(server.client, texts[:GROWING], GROWING, GROWN)
        assert found == grown, "in a tiny cache"
        assert server.wait_until_idle().value("ddl_preemptions_total") > 0, "nothing was preempted"

