"""Calls that run together answer exactly as they do alone."""

import checkpoints
from concurrent_calls import ask, ask_together, make_calls


def steps_of_more_than(scrape, sequences):
    """How many steps had more than `sequences` sequences, the bound of a bucket."""
    name = "ddl_step_batch_size"
    at_most = sum(sample.value for sample in scrape.samples
                  if sample.name == name + "_bucket" and float(sample.labels["le"]) == sequences)
    return scrape.value(name + "_count") - at_most


def test_together_as_alone(server):
    calls = make_calls(checkpoints.TOKENIZER_SIZE, most_prompt=120, most_new=160)
    alone = [ask(server.client, call) for call in calls]
    assert len({token for (kind, _, _), answer in zip(calls, alone) if kind != "embed"
                for token in answer}) > 10, "the model says too little to tell answers apart"
    before = server.wait_until_idle()
    assert steps_of_more_than(before, 8) == 0
    together = ask_together(server.client, calls)
    after = server.wait_until_idle()
    for i, call in enumerate(calls):
        assert together[i] == alone[i], f"call {i}: {call}"
    large = steps_of_more_than(after, 16)
    print(f"\n{large:.0f} steps computed more than 16 sequences")
    assert large >= 10
