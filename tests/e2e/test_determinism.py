"""The same request gives the same tokens and log-probabilities, bit for bit, in bfloat16 with the
server's defaults: alone or in a batch of any size and order, its prompt computed at once or in
chunks, preempted or not, found in the prefix cache or not. Every variant, over real gRPC."""

import concurrent.futures
import random
import struct

import pytest

import checkpoints
from server_process import Server, kv_bytes_per_block

VARIANTS = ("gpt", "vdim1", "tc", "tcec", "cc", "ccec")
REQUESTS = 32
CONTEXT = 256


def folder(variant):
    """Two layers, wide enough that matrix products have blocks and remainders."""
    return checkpoints.random_checkpoint(
        "--variant", variant, "--hidden-size", "192", "--layers", "2", "--heads", "3",
        "--head-dim", "48", "--vocab-size", "512", "--block-size", str(CONTEXT), "--dtype",
        "bfloat16")


def make_requests(vocab_size, longest_prompt=100, most_new=100):
    """Greedy and sampled ones. Prompts come in families that share what they begin with, so that
    the prefix cache has something to find; lengths straddle the blocks of 16 positions."""
    rng = random.Random(7)
    stems = [[rng.randrange(vocab_size) for _ in range(length)] for length in (16, 33, 64)]
    requests = []
    for i in range(REQUESTS):
        stem = stems[i % len(stems)] if i % 4 else []
        own = rng.randint(1, longest_prompt - len(stem))
        prompt = stem + [rng.randrange(vocab_size) for _ in range(own)]
        sampled = dict(temperature=0.9, top_p=0.95, min_p=0.01, frequency_penalty=0.3, seed=i)
        parameters = dict(temperature=0) if i % 3 == 0 else sampled
        requests.append((prompt, dict(max_tokens=rng.randint(most_new // 2, most_new),
                                      ignore_eos=True, logprobs=2, **parameters)))
    return requests


def bits(number):
    return struct.pack("<f", number)


def ask(client, request):
    prompt, parameters = request
    return [(token.token_id, bits(token.logprob),
             tuple((top.token_id, bits(top.logprob)) for top in token.top))
            for token in client.generate(prompt, **parameters).completions[0].tokens]


def ask_together(client, requests, at_a_time):
    with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
        return list(pool.map(lambda request: ask(client, request), requests))


def check(found, expected, order, how):
    for position, i in enumerate(order):
        assert found[position] == expected[i], f"request {i} differs {how}"


def mixed_or_prefill_steps(scrape):
    return sum(scrape.value("ddl_step_duration_seconds_count", phase=phase)
               for phase in ("prefill", "mixed"))


def check_variant(model, requests, at_a_time):
    # Each alone, one after another, nothing found in any cache, every prompt in one piece.
    with Server(model, "--prefix_cache=false", "--max_step_tokens=512") as server:
        expected = [ask(server.client, request) for request in requests]
        scrape = server.wait_until_idle()
        assert scrape.value("ddl_preemptions_total") == 0
        assert scrape.value("ddl_prefix_cache_hit_tokens_total") == 0
        assert mixed_or_prefill_steps(scrape) == len(requests)
    assert len({token for answer in expected for token, _, _ in answer}) > 50, "too monotonous"

    shuffled = list(range(len(requests)))
    random.Random(8).shuffle(shuffled)
    orders = {"in order": list(range(len(requests))),
              "backwards": list(reversed(range(len(requests)))), "shuffled": shuffled}

    # The defaults: the second and third round find their prompts in the prefix cache.
    with Server(model) as server:
        for (name, order), size in zip(orders.items(), at_a_time):
            found = ask_together(server.client, [requests[i] for i in order], size)
            check(found, expected, order, f"with {size} at a time, {name}")
        scrape = server.wait_until_idle()
        hits = scrape.value("ddl_prefix_cache_hit_tokens_total")
        assert hits > 0, "nothing was found in the prefix cache"
        assert scrape.value("ddl_prompt_tokens_total", source="cached") == hits

    # A cache of two contexts and steps of few positions: prompts in chunks, preemptions.
    block_bytes = kv_bytes_per_block(model)
    with Server(model, f"--kv_cache_memory={2 * CONTEXT // 16 * block_bytes}",
                "--max_running_sequences=16", "--max_step_tokens=24") as server:
        found = ask_together(server.client, [requests[i] for i in shuffled], len(requests))
        check(found, expected, shuffled, "in a tiny cache")
        scrape = server.wait_until_idle()
        preemptions = scrape.value("ddl_preemptions_total")
        prefills = mixed_or_prefill_steps(scrape)
        longest = max(len(prompt) for prompt, _ in requests)
        assert preemptions > 0, "nothing was preempted"
        assert longest > 24, "no prompt is longer than a step"
        chunked = sum(len(prompt) > 24 for prompt, _ in requests)
    return hits, preemptions, chunked, prefills


@pytest.mark.parametrize("variant", VARIANTS)
def test_bits_never_change(variant):
    figures = check_variant(folder(variant), make_requests(512), (1, 8, 32))
    print("\n{}: {:.0f} tokens found in the prefix cache, {:.0f} preemptions, {} prompts in "
          "chunks, {:.0f} steps with prompts".format(variant, *figures))
