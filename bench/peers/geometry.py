"""The additive baseline's geometry, for the peers' models: plain transformers that cost the same work per token."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
from ddl_config import SIZES, Config  # noqa: E402

# Qwen3 is the plain transformer that peers know with the same QK norm, RoPE and SwiGLU, and without biases.
PAPER_SIZES = ("small", "medium")


def baseline(size):
    """The gpt variant's configuration in one of the paper's sizes."""
    return Config(variant="gpt", **SIZES[size])
