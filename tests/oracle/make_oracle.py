#!/usr/bin/env python3
"""Writes oracle.safetensors beside the goldens whose one-token cases the official code gets wrong.

    python tests/oracle/make_oracle.py tests/data/goldens tests/data/goldens-legacy tests/data/goldens-v2

With use_k_shift or use_v_shift, the official forward pass skips the shift when the input is one token long, but applies
it with a zero predecessor to the first token of a longer input: `logits_one`, `hidden_one` and the first token of
`greedy_one` follow the skip. The right values, what training saw, come from the independent decoder beside this script.
"""
import json
import pathlib
import struct
import sys

import numpy as np

from ddl_numpy import Model, read_safetensors


def write_safetensors(path, tensors):
    header, blobs, offset = {}, [], 0
    for name, array in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        dtype = {"float32": "F32", "int32": "I32"}[str(array.dtype)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main():
    for folder in sorted(p for d in sys.argv[1:] for p in pathlib.Path(d).iterdir() if p.is_dir()):
        model = Model(folder)
        if not any("shift_proj" in name for name in model.w):
            continue
        golden = read_safetensors(folder / "golden.safetensors")
        ids = golden["input_ids_one"]
        logits, hidden, greedy = [], [], []
        for row in ids:
            row_logits, seen, state = model.run(row)
            logits.append(row_logits)
            hidden.append(np.stack([s["hidden"] for s in seen]))
            tokens, last = [], row_logits[-1]
            for _ in range(golden["greedy_one"].shape[1]):
                ranked = np.sort(last)
                assert ranked[-1] - ranked[-2] > 0.002, f"{folder.name}: greedy is a near tie"
                tokens.append(int(np.argmax(last)))
                last = model.step(state, tokens[-1])
            greedy.append(tokens)
        write_safetensors(folder / "oracle.safetensors", {
            "logits_one": np.stack(logits).astype(np.float32),
            "hidden_one": np.stack(hidden).astype(np.float32),
            "greedy_one": np.array(greedy, np.int32)})
        print(f"{folder.name}: greedy_one {greedy[0]} (official code: {golden['greedy_one'][0].tolist()})")


if __name__ == "__main__":
    main()
