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


def test_half_a_character(client, tokenizer):
    ids = tokenizer.encode("東").ids
    assert len(ids) > 1
    assert client.detokenize([ids[:1], ids]) == ["\ufffd", "東"]
