"""Generate and GenerateStream, seen by a client: prompts, ends, sampling, log probabilities."""

import math
import uuid

import pytest
from ddl.v1 import inference_pb2

import checkpoints
from server_process import Server

TEXT = "The quick brown fox jumps"
CONTEXT = 512
STOP, EOS, LENGTH, END_OF_CONTEXT = (
    inference_pb2.FinishReason.Value(f"FINISH_REASON_{name}")
    for name in ("STOP", "EOS", "LENGTH", "CONTEXT"))


@pytest.fixture(scope="module")
def tokenizer():
    return checkpoints.small_tokenizer()


def generate(client, prompt=TEXT, **parameters):
    """The only completion of a Generate: greedy, beyond the end token, if not said otherwise."""
    defaults = {"temperature": 0, "ignore_eos": True, "seed": 1, "max_tokens": 40}
    response = client.generate(prompt, **(defaults | parameters))
    assert len(response.completions) == 1
    completion = response.completions[0]
    assert response.usage.completion_tokens == len(completion.tokens)
    return completion


def stream(client, prompt=TEXT, **parameters):
    """The deltas of the same as a list, and the Stream."""
    defaults = {"temperature": 0, "ignore_eos": True, "seed": 1, "max_tokens": 40}
    call = client.stream(prompt, **(defaults | parameters))
    return list(call), call


def ids(tokens):
    return [token.token_id for token in tokens]


def token_bytes(tokens):
    return b"".join(token.token_bytes for token in tokens)


# ---- prompts


def test_text_and_its_token_ids_are_the_same_prompt(client, tokenizer):
    assert generate(client, TEXT) == generate(client, tokenizer.encode(TEXT).ids)


def test_text_is_what_the_tokens_stand_for(client, tokenizer):
    completion = generate(client, temperature=1)
    expected = token_bytes(completion.tokens).decode(errors="replace")
    assert completion.text == expected == tokenizer.decode(ids(completion.tokens))


def test_usage_and_timings(client, tokenizer):
    response = client.generate(TEXT, max_tokens=7, ignore_eos=True)
    prompt_tokens = len(tokenizer.encode(TEXT).ids)
    assert response.usage.prompt_tokens == prompt_tokens
    assert response.usage.completion_tokens == 7
    assert response.usage.total_tokens == prompt_tokens + 7
    timings = {field.name: getattr(response.timings, field.name).ToNanoseconds()
               for field in response.timings.DESCRIPTOR.fields if field.message_type}
    assert all(nanoseconds > 0 for nanoseconds in timings.values()), timings
    assert timings["time_to_first_token"] <= timings["queue"] + timings["prefill"] + 1000


@pytest.mark.parametrize("direction", ["right", "left"])
def test_truncation(client, direction):
    prompt = [i % 300 for i in range(CONTEXT + 50)]
    kept = prompt[:CONTEXT - 1] if direction == "right" else prompt[-(CONTEXT - 1):]
    response = client.generate(prompt, truncate=direction, ignore_eos=True, temperature=0)
    assert response.usage.prompt_tokens == CONTEXT - 1
    assert ids(response.completions[0].tokens) == ids(generate(client, kept).tokens)


def test_padding_ids_are_never_drawn(client):
    """Ids past the tokenizer's have rows in the embedding, but stand for nothing."""
    sampled = set()
    for seed in range(8):
        sampled |= set(ids(generate(client, temperature=2, seed=seed, max_tokens=400).tokens))
    assert max(sampled) < checkpoints.TOKENIZER_SIZE < checkpoints.VOCAB_SIZE
    assert len(sampled) > 300


# ---- streams


@pytest.mark.parametrize("parameters", [
    {}, {"temperature": 1, "seed": 5}, {"stream_interval": 3}, {"stream_interval": 1000},
    {"stop": ["e", "o", "th"], "temperature": 1}, {"logprobs": 2}, {"max_tokens": 1},
    {"temperature": 2, "seed": 9, "max_tokens": 300}], ids=str)
def test_stream_says_what_generate_says(client, parameters):
    expected = generate(client, **parameters)
    deltas, call = stream(client, **parameters)
    assert "".join(delta.text for delta in deltas) == expected.text
    assert [token for delta in deltas for token in delta.tokens] == list(expected.tokens)
    assert {delta.index for delta in deltas} == {0}
    end = call.end.completions[0]
    expected.ClearField("text")
    expected.ClearField("tokens")
    assert end == expected


def test_each_token_comes_with_its_own_delta(client):
    deltas, call = stream(client, temperature=1)
    assert [len(delta.tokens) for delta in deltas] == [1] * 40
    assert call.start.prompt_tokens == call.end.usage.prompt_tokens


def test_stream_interval(client):
    deltas, _ = stream(client, stream_interval=7)
    assert [len(delta.tokens) for delta in deltas] == [7] * 5 + [5]


def test_a_token_does_not_wait_for_its_text(client):
    """Half a character has no text yet; its token travels all the same."""
    halves = 0
    for seed in range(5):
        deltas, _ = stream(client, temperature=2, seed=seed, max_tokens=200)
        for delta in deltas:
            assert len(delta.tokens) == 1
            halves += not delta.text
    assert halves > 0


# ---- several completions, echo


def test_several_completions_are_those_of_their_seeds(client):
    response = client.generate(TEXT, max_tokens=20, seed=50, n=4)
    assert response.usage.completion_tokens == sum(len(each.tokens) for each in response.completions)
    call = client.stream(TEXT, max_tokens=20, seed=50, n=4)
    deltas = list(call)
    for index, completion in enumerate(response.completions):
        alone = client.generate(TEXT, max_tokens=20, seed=50 + index).completions[0]
        alone.index = index
        assert completion == alone
        own = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in own) == alone.text
        assert [token for delta in own for token in delta.tokens] == list(alone.tokens)
        alone.ClearField("text")
        alone.ClearField("tokens")
        assert call.end.completions[index] == alone
    assert len({tuple(ids(each.tokens)) for each in response.completions}) == 4


@pytest.mark.parametrize("n", [1, 3])
def test_echo(client, n):
    plain = client.generate(TEXT, max_tokens=10, seed=1, n=n)
    echoed = client.generate(TEXT, max_tokens=10, seed=1, n=n, echo=True)
    deltas = list(client.stream(TEXT, max_tokens=10, seed=1, n=n, echo=True))
    assert [(delta.index, delta.text, len(delta.tokens)) for delta in deltas[:n]] == [
        (index, TEXT, 0) for index in range(n)]
    for index in range(n):
        assert echoed.completions[index].text == TEXT + plain.completions[index].text
        assert echoed.completions[index].tokens == plain.completions[index].tokens
        text = "".join(delta.text for delta in deltas if delta.index == index)
        assert text == echoed.completions[index].text


# ---- the prefix cache


def test_a_prompt_seen_before_is_not_computed_again(server, client):
    prompt = [i * 7 % 350 for i in range(200)]
    first = client.generate(prompt, max_tokens=20, seed=5)
    before = server.scrape()
    again = client.generate(prompt, max_tokens=20, seed=5)
    longer = client.generate(prompt + [1, 2, 3], max_tokens=20, seed=5)
    assert again.usage.cached_tokens == 192  # whole blocks of 16
    assert longer.usage.cached_tokens >= 192
    assert again.completions == first.completions
    fresh = client.generate(prompt + [1, 2, 3], max_tokens=20, seed=5, use_prefix_cache=False)
    assert fresh.usage.cached_tokens == 0
    assert fresh.completions == longer.completions
    after = server.scrape()
    grown = {source: after.value("ddl_prompt_tokens_total", source=source)
             - before.value("ddl_prompt_tokens_total", source=source)
             for source in ("cached", "computed")}
    cached = again.usage.cached_tokens + longer.usage.cached_tokens
    assert grown == {"cached": cached, "computed": 200 + 203 + 203 - cached}


# ---- ends


def test_max_tokens(client):
    for max_tokens in (1, 2, 17):
        completion = generate(client, max_tokens=max_tokens)
        assert (len(completion.tokens), completion.finish_reason) == (max_tokens, LENGTH)


def test_context(client):
    prompt = list(range(300))
    completion = generate(client, prompt, max_tokens=10**6)
    assert len(completion.tokens) == CONTEXT - len(prompt)
    assert completion.finish_reason == END_OF_CONTEXT
    # Just as many as fit were asked for: they were all delivered.
    completion = generate(client, prompt, max_tokens=CONTEXT - len(prompt))
    assert completion.finish_reason == LENGTH


def test_longest_prompt(client):
    completion = generate(client, [7] * (CONTEXT - 1), max_tokens=5)
    assert (len(completion.tokens), completion.finish_reason) == (1, END_OF_CONTEXT)


def first_index(tokens, accept):
    return next(i for i, token in enumerate(tokens) if accept(i, token))


def test_stop_token_ids(client):
    free = generate(client)
    position = first_index(free.tokens, lambda i, token: i >= 5 and
                           token.token_id not in ids(free.tokens[:i]))
    stop = free.tokens[position].token_id
    completion = generate(client, stop_token_ids=[stop])
    assert completion.finish_reason == STOP
    assert completion.matched_token_id == stop
    assert ids(completion.tokens)[:position] == ids(free.tokens)[:position]
    assert len(completion.tokens) <= position + 1


def test_min_tokens_keeps_stop_tokens_away(client):
    free = generate(client)
    stop = free.tokens[0].token_id
    assert len(generate(client, stop_token_ids=[stop]).tokens) <= 1
    completion = generate(client, stop_token_ids=[stop], min_tokens=10)
    assert stop not in ids(completion.tokens[:10])
    assert len(completion.tokens) >= 10


def text_for_stops(client):
    """A sampled completion, long enough to hold stop strings that span tokens."""
    return generate(client, temperature=1, seed=3, max_tokens=120)


def spanning_stops(completion):
    """Strings of the text, ASCII for simplicity, that begin in one token and end in another."""
    tokens = [token.token_bytes for token in completion.tokens]
    for i in range(10, len(tokens) - 1):
        left, right = tokens[i][-1:], tokens[i + 1][:1]
        if (left + right).isascii() and (left + right).decode().isprintable():
            yield (left + right).decode()


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
def test_stop_strings_across_tokens(client, streamed):
    free = text_for_stops(client)
    stops = list(spanning_stops(free))[:6]
    assert len(stops) >= 3, "the text offers too few places to stop at"
    for stop in stops:
        before = free.text.index(stop)
        parameters = dict(temperature=1, seed=3, max_tokens=120, stop=["never in it", stop])
        if streamed:
            deltas, call = stream(client, **parameters)
            text, end = "".join(delta.text for delta in deltas), call.end.completions[0]
        else:
            end = generate(client, **parameters)
            text = end.text
        assert text == free.text[:before], f"stop {stop!r}"
        assert end.finish_reason == STOP
        assert end.matched_stop_str == stop


def test_stop_string_in_the_output_if_asked_for(client):
    free = text_for_stops(client)
    stop = next(spanning_stops(free))
    completion = generate(client, temperature=1, seed=3, max_tokens=120, stop=stop,
                          include_stop_str_in_output=True)
    assert completion.text == free.text[:free.text.index(stop)] + stop


def test_min_tokens_keeps_stop_strings_away(client):
    free = text_for_stops(client)
    stop = next(spanning_stops(free))
    completion = generate(client, temperature=1, seed=3, max_tokens=120, stop=stop, min_tokens=120)
    assert (completion.text, completion.finish_reason) == (free.text, LENGTH)


def test_the_beginning_of_a_stop_string_is_delivered_at_the_end(client):
    """Text that might have become a stop string, but did not, is not lost."""
    free = generate(client, temperature=1, seed=3, max_tokens=60)
    stop = free.text[-1] + "and never this"
    completion = generate(client, temperature=1, seed=3, max_tokens=60, stop=stop)
    assert (completion.text, completion.finish_reason) == (free.text, LENGTH)
    assert completion.tokens == free.tokens


def test_end_of_text(client, tokenizer):
    """Sampled at a high temperature sooner or later, it ends the completion unless ignored."""
    end_of_text = tokenizer.token_to_id(checkpoints.END_OF_TEXT)
    for seed in range(50):
        completion = generate(client, temperature=2, seed=seed, max_tokens=400, ignore_eos=False)
        if completion.finish_reason == EOS:
            break
    assert completion.finish_reason == EOS
    beyond = generate(client, temperature=2, seed=seed, max_tokens=400)
    position = ids(beyond.tokens).index(end_of_text)
    assert ids(beyond.tokens)[:position] == [token for token in ids(completion.tokens)
                                             if token != end_of_text]
    assert checkpoints.END_OF_TEXT not in beyond.text
    assert beyond.tokens[position].special
    shown = generate(client, temperature=2, seed=seed, max_tokens=400, skip_special_tokens=False)
    assert checkpoints.END_OF_TEXT in shown.text


def test_tokens_by_default(client):
    """--default_max_tokens, which the context caps."""
    response = client.generate(TEXT, ignore_eos=True)
    assert response.usage.completion_tokens == 256


# ---- sampling


def test_a_seed_gives_the_same_tokens_again(client):
    first, again = (generate(client, temperature=1, seed=2**64 - 1) for _ in range(2))
    assert first == again
    assert first.seed == 2**64 - 1
    assert generate(client, temperature=1, seed=4).tokens != first.tokens


def test_the_server_returns_the_seed_it_chose(client):
    sampled, other = (client.generate(TEXT, max_tokens=40, ignore_eos=True).completions[0]
                      for _ in range(2))
    assert sampled.seed != other.seed
    again = generate(client, temperature=1, seed=sampled.seed)
    assert again.tokens == sampled.tokens


def test_temperature_zero_top_k_one_and_tiny_top_p_are_greedy(client):
    greedy = ids(generate(client).tokens)
    assert ids(generate(client, temperature=1, top_k=1, seed=8).tokens) == greedy
    assert ids(generate(client, temperature=1, top_p=1e-6, seed=8).tokens) == greedy


def test_top_k_draws_from_the_k_most_likely(client):
    completion = generate(client, temperature=2, top_k=3, logprobs=3, max_tokens=200)
    for token in completion.tokens:
        assert token.token_id in ids(token.top)
    assert len({ids(token.top).index(token.token_id) for token in completion.tokens}) == 3


def test_penalties_and_biases(client):
    greedy = ids(generate(client).tokens)
    assert len(set(greedy)) < len(greedy)  # or the penalties have nothing to do
    biased = ids(generate(client, logit_bias={33: 100.0}).tokens)
    assert biased == [33] * 40
    assert greedy[0] not in ids(generate(client, logit_bias={greedy[0]: -100.0}).tokens)
    for penalty in ({"repetition_penalty": 1e6}, {"presence_penalty": 2.0, "logit_bias": {7: 1.5}},
                    {"frequency_penalty": 2.0}):
        assert ids(generate(client, **penalty).tokens) != greedy
    assert ids(generate(client, temperature=1, min_p=1.0, seed=8).tokens) == greedy


# ---- log probabilities


def test_no_logprobs_unless_asked_for(client):
    for token in generate(client).tokens:
        assert not token.HasField("logprob") and not token.top


@pytest.mark.parametrize("logprobs", [0, 1, 5, 20])
def test_logprobs(client, logprobs):
    completion = generate(client, temperature=1, logprobs=logprobs)
    for token in completion.tokens:
        assert token.HasField("logprob") and token.logprob <= 0
        assert len(token.top) == logprobs
        found = [top.logprob for top in token.top]
        assert found == sorted(found, reverse=True)
        assert sum(map(math.exp, found)) < 1 + 1e-4
        for top in token.top:
            assert top.token_bytes or top.token_id >= checkpoints.TOKENIZER_SIZE
            assert (top.token_id == token.token_id) == (top.logprob == token.logprob)
    total = sum(token.logprob for token in completion.tokens)
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-3)


def test_greedy_takes_the_most_likely(client):
    for token in generate(client, logprobs=1).tokens:
        assert token.token_id == token.top[0].token_id


def test_scores_are_what_decoding_reports(client, tokenizer):
    """To the bit: of the prompt, and of the tokens sampled after it."""
    prompt = tokenizer.encode(TEXT).ids
    response = client.generate(TEXT, temperature=1, seed=2, max_tokens=60, ignore_eos=True,
                               logprobs=0, prompt_logprobs=2)
    completion = response.completions[0]
    assert ids(response.prompt_tokens) == prompt
    assert not response.prompt_tokens[0].HasField("logprob")
    assert [len(token.top) for token in response.prompt_tokens] == [0] + [2] * (len(prompt) - 1)
    whole = prompt + ids(completion.tokens)
    scored = client.score([whole, [5], TEXT])
    assert ids(scored.scores[0].tokens) == whole
    decoded = list(response.prompt_tokens) + list(completion.tokens)
    assert [token.logprob for token in scored.scores[0].tokens] == [
        token.logprob for token in decoded]
    assert sum(token.logprob for token in completion.tokens) == completion.cumulative_logprob
    total = sum(token.logprob for token in scored.scores[0].tokens[1:])
    assert scored.scores[0].total_logprob == total
    assert scored.scores[0].mean_nll == pytest.approx(-total / (len(whole) - 1), rel=1e-12)
    assert (scored.scores[1].total_logprob, scored.scores[1].mean_nll) == (0, 0)
    assert len(scored.scores[1].tokens) == 1
    assert [token.logprob for token in scored.scores[2].tokens] == [
        token.logprob for token in response.prompt_tokens]
    assert scored.usage.prompt_tokens == len(whole) + 1 + len(prompt)
    call = client.stream(TEXT, max_tokens=1, prompt_logprobs=2)
    list(call)
    assert call.start.prompt_token_infos == response.prompt_tokens


# ---- identity


def test_request_id_is_echoed_or_made(client):
    response = client.generate(TEXT, max_tokens=1, request_id="mine")
    assert response.request_id == "mine"
    made = [client.generate(TEXT, max_tokens=1).request_id for _ in range(2)]
    assert made[0] != made[1]
    assert [uuid.UUID(text).version for text in made] == [4, 4]


def test_answers_name_the_model(server, client):
    model = client.model_info()
    for name in ("", model.name):
        response = client.generate(TEXT, max_tokens=1, model=name)
        assert response.model == model.name
        assert response.model_version == model.version != ""
        assert response.system_fingerprint


# ---- another context than the model's own


@pytest.mark.parametrize("context", [20, 200])
def test_context_length_of_the_command_line(context):
    """config.json says 64."""
    with Server(checkpoints.random_checkpoint(), f"--max_context_length={context}") as server:
        completion = generate(server.client, [1, 2, 3], max_tokens=1000)
        assert (len(completion.tokens), completion.finish_reason) == (context - 3, END_OF_CONTEXT)
        longest = [5] * context
        assert len(server.client.embed([longest], pooling="none").embeddings[0].vectors) == context


# ---- without a tokenizer


def test_token_ids_alone():
    with Server(checkpoints.random_checkpoint(), "--max_context_length=64") as server:
        deltas, call = stream(server.client, [1, 2, 3], max_tokens=20)
        tokens = [token for delta in deltas for token in delta.tokens]
        assert len(tokens) == 20 and max(ids(tokens)) < 256
        assert {delta.text for delta in deltas} == {""}
        assert call.end.completions[0].finish_reason == LENGTH
        assert ids(generate(server.client, [1, 2, 3], max_tokens=20).tokens) == ids(tokens)
