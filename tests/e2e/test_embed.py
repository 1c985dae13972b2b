"""Embed, seen by a client: pooling, order, truncation, encodings."""

import numpy
import pytest

import checkpoints
from ddl_client import RpcError, vectors
from server_process import ROOT, Server

CONTEXT = 512
WIDTH = 64
PROMPTS = [[5, 6, 7, 8], [300], list(range(120)), [5, 6, 7]]
# Between the same numbers computed on the client and on the server, float32 both.
CLOSE = dict(rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def hidden(server):
    """The vector of every token, of every prompt."""
    return vectors(server.client.embed(PROMPTS, pooling="none", normalize=False))


def unit(rows):
    return rows / numpy.linalg.norm(rows, axis=-1, keepdims=True)


def test_shapes_and_order(client, hidden):
    assert [rows.shape for rows in hidden] == [(len(prompt), WIDTH) for prompt in PROMPTS]
    response = client.embed(PROMPTS)
    assert [each.index for each in response.embeddings] == [0, 1, 2, 3]
    assert [each.prompt_tokens for each in response.embeddings] == [4, 1, 120, 3]
    assert not any(each.truncated for each in response.embeddings)
    assert response.dimensions == WIDTH
    assert response.usage.prompt_tokens == response.usage.total_tokens == 128
    assert response.usage.completion_tokens == 0


def test_one_call_or_many(client, hidden):
    """Also: what comes later in a text does not change what came before."""
    for prompt, expected in zip(PROMPTS, hidden):
        alone = vectors(client.embed([prompt], pooling="none", normalize=False))[0]
        numpy.testing.assert_array_equal(alone, expected)
    numpy.testing.assert_allclose(hidden[3], hidden[0][:3], **CLOSE)


def weighted_mean(rows):
    """Position i of n weighs i + 1."""
    weights = numpy.arange(1, len(rows) + 1)[:, None]
    return (weights * rows).sum(0) / weights.sum()


POOLINGS = {
    "last_token": lambda rows: rows[-1],
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0),
    "weighted_mean": weighted_mean,
    "none": lambda rows: rows,
    None: lambda rows: rows[-1],
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling(client, hidden, pooling):
    raw = vectors(client.embed(PROMPTS, pooling=pooling, normalize=False))
    normal = vectors(client.embed(PROMPTS, pooling=pooling))
    short = vectors(client.embed(PROMPTS, pooling=pooling, dimensions=10))
    for i, rows in enumerate(hidden):
        expected = numpy.atleast_2d(POOLINGS[pooling](rows))
        numpy.testing.assert_allclose(raw[i], expected, **CLOSE)
        numpy.testing.assert_allclose(normal[i], unit(expected), **CLOSE)
        numpy.testing.assert_allclose(short[i], unit(expected[:, :10]), **CLOSE)


LAYERS = 2
CHANNELS = 4


@pytest.fixture(scope="module")
def states(server):
    """The state X [tokens, d, dv] after each layer, of every prompt."""
    return [
        [rows.reshape(-1, WIDTH, CHANNELS) for rows in vectors(server.client.embed(
            PROMPTS, pooling="none", normalize=False, readout="state_flat", layer=layer))]
        for layer in range(LAYERS)]


@pytest.mark.parametrize("layer", [None, 0, 1, -1, -2])
def test_layers_count_from_both_ends(client, states, layer):
    found = vectors(client.embed(PROMPTS, pooling="none", normalize=False, readout="state_flat",
                                 layer=layer))
    for rows, expected in zip(found, states[LAYERS - 1 if layer is None else layer]):
        numpy.testing.assert_array_equal(rows, expected.reshape(rows.shape))


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("channel", range(CHANNELS))
def test_channels_are_columns_of_the_state(client, states, layer, channel):
    found = vectors(client.embed(PROMPTS, pooling="none", normalize=False, readout="channel",
                                 channel=channel, layer=layer))
    for rows, state in zip(found, states[layer]):
        numpy.testing.assert_array_equal(rows, state[:, :, channel])


@pytest.mark.parametrize("readout", ["final_norm", "compressed"])
@pytest.mark.parametrize("layer", [0, 1])
def test_readouts_that_compress(client, hidden, states, readout, layer):
    """A function of X of width d: a different one for each layer and readout."""
    found = vectors(client.embed(PROMPTS, pooling="none", normalize=False, readout=readout,
                                 layer=layer))
    assert [rows.shape for rows in found] == [rows.shape for rows in hidden]
    same = all(numpy.array_equal(rows, last) for rows, last in zip(found, hidden))
    assert same == (readout == "final_norm" and layer == LAYERS - 1)
    if readout == "compressed":  # linear in X: found at a prefix as at the whole
        numpy.testing.assert_allclose(found[3], found[0][:3], **CLOSE)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("readout", ["final_norm", "compressed", "channel", "state_flat"])
def test_every_pooling_of_every_readout(client, pooling, readout):
    choice = dict(readout=readout, layer=0, channel=1 if readout == "channel" else None)
    every = vectors(client.embed(PROMPTS, pooling="none", normalize=False, **choice))
    cut = vectors(client.embed(PROMPTS, pooling=pooling, dimensions=10, **choice))
    raw = vectors(client.embed(PROMPTS, pooling=pooling, normalize=False, **choice))
    for i, rows in enumerate(every):
        expected = numpy.atleast_2d(POOLINGS[pooling](rows))
        numpy.testing.assert_allclose(raw[i], expected, **CLOSE)
        numpy.testing.assert_allclose(cut[i], unit(expected[:, :10]), rtol=1e-4, atol=1e-5)


def test_dimensions_of_a_whole_state(client):
    response = client.embed([[1, 2]], readout="state_flat", dimensions=WIDTH * CHANNELS)
    assert response.dimensions == WIDTH * CHANNELS
    with pytest.raises(RpcError) as caught:
        client.embed([[1, 2]], readout="state_flat", dimensions=WIDTH * CHANNELS + 1)
    assert caught.value.violations[0][0] == "params.dimensions"
    with pytest.raises(RpcError) as caught:
        client.embed([[1, 2]], readout="channel", channel=CHANNELS)
    assert caught.value.violations[0][0] == "params.channel"


STATS = ("per_layer_beta", "per_token_beta", "update_norms")


def test_statistics(client, states):
    """The gates of every sublayer; the summaries are those of the gates."""
    response = client.embed(PROMPTS, ddl_stats=STATS)
    for embedding, prompt in zip(response.embeddings, PROMPTS):
        sublayers = embedding.ddl_stats.sublayers
        assert [(each.layer, each.sublayer) for each in sublayers] == [
            (layer, name) for layer in range(LAYERS) for name in ("attn", "mlp")]
        for each in sublayers:
            beta = numpy.array(each.beta_per_token, numpy.float64)
            assert beta.shape == (len(prompt),) and (beta >= 0).all() and (beta <= 2).all()
            numpy.testing.assert_allclose(
                [each.beta_mean, each.beta_min, each.beta_max, each.beta_std,
                 each.fraction_identity, each.fraction_reflection],
                [beta.mean(), beta.min(), beta.max(), beta.std(), (beta < 0.1).mean(),
                 (beta > 1.5).mean()], rtol=1e-5, atol=1e-6)
            assert each.update_norm_mean > 0
    plain = client.embed(PROMPTS)
    for embedding, expected in zip(response.embeddings, plain.embeddings):
        assert not expected.HasField("ddl_stats")
        assert embedding.vectors == expected.vectors


def test_text_and_its_token_ids_are_the_same_input(client):
    text = checkpoints.SENTENCES[3]
    ids = checkpoints.small_tokenizer().encode(text).ids
    by_text, by_ids = vectors(client.embed([text])) + vectors(client.embed([ids]))
    numpy.testing.assert_array_equal(by_text, by_ids)


@pytest.mark.parametrize("direction,kept", [("right", slice(0, 3)), ("left", slice(-3, None))])
def test_truncation(client, direction, kept):
    prompts = [[1, 2, 3, 4, 5], [9, 8]]
    response = client.embed(prompts, truncate=direction, max_tokens=3, pooling="mean")
    assert [each.truncated for each in response.embeddings] == [True, False]
    assert [each.prompt_tokens for each in response.embeddings] == [3, 2]
    expected = client.embed([prompts[0][kept], prompts[1]], pooling="mean")
    for found, row in zip(vectors(response), vectors(expected)):
        numpy.testing.assert_array_equal(found, row)


def test_a_whole_context(client):
    prompt = [i % 350 for i in range(CONTEXT)]
    response = client.embed([prompt], pooling="none")
    assert vectors(response)[0].shape == (CONTEXT, WIDTH)
    longer = client.embed([prompt + [1]], pooling="none", truncate="right")
    assert longer.embeddings[0].truncated
    numpy.testing.assert_array_equal(vectors(longer)[0], vectors(response)[0])


def test_encodings(client):
    floats = vectors(client.embed(PROMPTS, encoding_format="float"))
    response = client.embed(PROMPTS, encoding_format="bytes_f32le")
    for embedding, row in zip(response.embeddings, floats):
        assert embedding.vectors[0].raw == row.astype("<f4").tobytes()
        assert not embedding.vectors[0].values
    halves = client.embed(PROMPTS, encoding_format="bytes_bf16le")
    for embedding, found, row in zip(halves.embeddings, vectors(halves), floats):
        assert len(embedding.vectors[0].raw) == 2 * WIDTH
        numpy.testing.assert_allclose(found, row, rtol=2**-8)


def test_many_inputs(client):
    inputs = [[i, i + 1] for i in range(256)]
    rows = vectors(client.embed(inputs))
    for i in (0, 100, 255):
        numpy.testing.assert_array_equal(rows[i], vectors(client.embed([inputs[i]]))[0])


def test_request_id(client):
    assert client.embed(["a"], request_id="mine").request_id == "mine"
    assert client.embed(["a"]).request_id


@pytest.mark.parametrize("name", ["ccec_base", "cc_base", "tc_base", "tcec_base", "vdim1_base"])
def test_readouts_of_long_inputs(name):
    """In chunks of a step, and where a prefix is known already, as in one piece."""
    prompt = [i * 7 % 250 for i in range(200)]
    with Server(ROOT / "tests/data/goldens" / name, "--dtype=float32", "--max_context_length=256",
                "--max_running_sequences=16", "--max_step_tokens=24") as pieces:
        with Server(ROOT / "tests/data/goldens" / name, "--dtype=float32",
                    "--max_context_length=256") as whole:
            for readout in ("final_norm", "compressed", "channel", "state_flat"):
                for layer in (0, None):
                    choice = dict(readout=readout, layer=layer, normalize=False)
                    [every] = vectors(whole.client.embed([prompt], pooling="none", **choice))
                    [chunks] = vectors(pieces.client.embed([prompt], pooling="none", **choice))
                    numpy.testing.assert_array_equal(chunks, every)
                    for server in (whole, pieces, whole):  # the first fills the prefix cache
                        [last] = vectors(server.client.embed([prompt], **choice))
                        numpy.testing.assert_array_equal(last[0], every[-1])
