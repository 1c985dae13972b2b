"""Tokenize and Detokenize against Hugging Face's tokenizers, which trained the tokenizer."""

import pytest

import checkpoints

TEXTS = [
    "",
    "The quick brown fox",
    "  spaces,\ttabs\r\n and lines\n\n",
    checkpoints.SENTENCES[3],
    "e\u0301 👩‍👩‍👧‍👦 \U0010ffff \u0000",
    f"before{checkpoints.END_OF_TEXT}after",
    "x" * 2000,
]


@pytest.fixture(scope="module")
def tokenizer():
    return checkpoints.small_tokenizer()


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_round_trip(client, tokenizer, text):
    expected = tokenizer.encode(text).ids
    [tokens] = client.tokenize([text])
    assert [token.id for token in tokens] == expected
    assert client.detokenize([expected], skip_special_tokens=False) == [text]
    # The offsets cut the text's bytes into what the tokens stand for.
    data = text.encode()
    assert b"".join(data[token.start:token.end] for token in tokens) == data
    for token in tokens:
        assert token.bytes == data[token.start:token.end]
        assert token.special == (token.bytes == checkpoints.END_OF_TEXT.encode())


def test_many_texts_in_order(client, tokenizer):
    lists = client.tokenize(TEXTS)
    assert [[token.id for token in tokens] for tokens in lists] == [
        tokenizer.encode(text).ids for text in TEXTS]
    assert client.detokenize([tokenizer.encode(text).ids for text in TEXTS],
                             skip_special_tokens=False) == TEXTS


def test_special_tokens_are_skipped_by_default(client, tokenizer):
    ids = tokenizer.encode(f"a{checkpoints.END_OF_TEXT}b").ids
    assert client.detokenize([ids]) == ["ab"]


def test_special_tokens_may_be_text(client, tokenizer):
    tokenizer.encode_special_tokens = True
    try:
        expected = [tokenizer.encode(text).ids for text in TEXTS]
    finally:
        tokenizer.encode_special_tokens = False
    lists = client.tokenize(TEXTS, parse_special_tokens=False)
    assert [[token.id for token in tokens] for tokens in lists] == expected
    assert not any(token.special for tokens in lists for token in tokens)
    assert client.detokenize(expected) == TEXTS


@pytest.mark.parametrize("parse", [True, False])
def test_all_calls_see_the_same_tokens(client, parse):
    text = f"before{checkpoints.END_OF_TEXT}after"
    [tokens] = client.tokenize([text], parse_special_tokens=parse)
    ids = [token.id for token in tokens]
    [scored] = client.score([text], parse_special_tokens=parse).scores
    assert [token.token_id for token in scored.tokens] == ids
    assert client.embed([text], parse_special_tokens=parse).usage.prompt_tokens == len(ids)
    response = client.generate(text, max_tokens=1, temperature=0, echo=True,
                               parse_special_tokens=parse)
    assert response.usage.prompt_tokens == len(ids)
    assert response.completions[0].text.startswith("beforeafter" if parse else text)


def test_half_a_character(client, tokenizer):
    ids = tokenizer.encode("東").ids
    assert len(ids) > 1
    assert client.detokenize([ids[:1], ids]) == ["\ufffd", "東"]
