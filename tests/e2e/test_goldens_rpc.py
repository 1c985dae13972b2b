"""What the official code computed for 89 tiny checkpoints of three revisions, asked for through the public RPCs."""

import sys

import numpy
import pytest

from ddl_client import vectors
from server_process import ROOT, Server

sys.path.append(str(ROOT / "tests" / "oracle"))
from ddl_numpy import read_safetensors  # noqa: E402

TOLERANCE = 1e-4  # between two float32 computations of the same code; see tests/data/README.md
CASES = sorted(path.parent for path in ROOT.glob("tests/data/goldens*/*/golden.safetensors"))
NEW_TOKENS = 12


def expectations(folder):
    """(token ids, hidden vectors, greedy continuation) for each prompt of a case.

    oracle.safetensors replaces what the official code is known to get wrong.
    """
    golden = read_safetensors(folder / "golden.safetensors")
    if (folder / "oracle.safetensors").exists():
        golden |= read_safetensors(folder / "oracle.safetensors")
    for kind in ("", "_short", "_one"):
        yield from zip(golden[f"input_ids{kind}"].tolist(), golden[f"hidden{kind}"],
                       golden[f"greedy{kind}"].tolist())


def test_all_cases_are_there():
    assert len(CASES) == 89


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_golden(folder):
    with Server(folder, "--dtype=float32") as server:
        model = server.client.model_info()
        revision = "d1f7621" if folder.name.startswith("v2_") else "legacy" if folder.name.startswith("legacy_") else "2b55f25"
        assert model.checkpoint_revision == revision
        assert model.parity_reference_commit == ("d1f7621" if revision == "d1f7621" else "2b55f25")
        expected = list(expectations(folder))
        prompts = [ids for ids, _, _ in expected]
        embedded = vectors(server.client.embed(prompts, pooling="none", normalize=False))
        for (ids, hidden, greedy), found in zip(expected, embedded, strict=True):
            numpy.testing.assert_allclose(found, hidden, rtol=0, atol=TOLERANCE, err_msg=str(ids))
            response = server.client.generate(ids, max_tokens=NEW_TOKENS, temperature=0)
            tokens = [token.token_id for token in response.completions[0].tokens]
            assert tokens == greedy, f"after {ids}"
