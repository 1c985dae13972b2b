"""Writes a safetensors file tensor by tensor, so that memory holds one at a time. Needs nothing but the standard library."""
from __future__ import annotations

import json
import math
import pathlib
import struct
from collections.abc import Callable

SIZES = {"F32": 4, "BF16": 2}


def write_safetensors(path: pathlib.Path, shapes: dict[str, tuple[int, ...]], code: str, data_of: Callable[[str], bytes]):
    """Every tensor in the type `code`; `data_of` gives the bytes of one by its name, and is called in the order of the names."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(shapes):
        end = at + SIZES[code] * math.prod(shapes[name])
        header[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the data starts aligned
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for name in sorted(shapes):
            data = data_of(name)
            begin, end = header[name]["data_offsets"]
            assert len(data) == end - begin, f"{name}: {len(data)} bytes"
            f.write(data)
