#!/usr/bin/env python3
"""Writes the other files of this folder with PyTorch's own torch.save: what the reader of pytorch_model.bin is tested with.

    python tests/data/pickles/make_pickles.py        (from the project's root; needs torch and safetensors)

Only needed to change them. They are stored because PyTorch for Python is not among what the tests install.
"""
import os
import pathlib
import pickle

import torch
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent


class RunsACommand:
    """Unpickled carelessly, this would run a command."""

    def __reduce__(self):
        return os.system, ("touch pickle-was-run",)


def main():
    # As the official save_pretrained writes it: a plain dict, and both tied names on one storage.
    official = load_file(HERE.parent / "goldens/vdim1_one_layer/model.safetensors")
    official["lm_head.weight"] = official["transformer.wte.weight"][:]
    torch.save(dict(official), HERE / "official.bin")

    counting = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    torch.save(
        {
            "float32": counting,
            "bfloat16": counting.bfloat16(),
            "float16": counting.half(),
            "float64": counting.double(),
            "transposed": counting.t(),  # not contiguous
            "column": counting[:, 1],
            "last_row": counting[1],
            "same": counting[:],
            "parameter": torch.nn.Parameter(counting.clone()),
        },
        HERE / "kinds.bin",
    )
    torch.save({"weight": counting}, HERE / "one.bin")
    torch.save({"weight": counting, "mask": torch.ones(2, dtype=torch.bool), "ids": torch.arange(3)}, HERE / "integers.bin")
    linear = torch.nn.Linear(3, 2)
    torch.save(linear.state_dict(), HERE / "ordered_dict.bin")
    torch.save({"model": linear.state_dict(), "step": 7}, HERE / "training_state.bin")
    torch.save({"weight": counting, "step": 7}, HERE / "step.bin")
    torch.save({"weight": counting, 7: counting}, HERE / "integer_key.bin")
    torch.save([counting], HERE / "list.bin")
    torch.save(counting, HERE / "tensor.bin")
    torch.save({}, HERE / "empty.bin")
    torch.save({"weight": RunsACommand()}, HERE / "runs_a_command.bin")
    torch.save({"weight": counting.to(torch.complex64)}, HERE / "complex.bin")
    torch.save({"weight": counting.to_sparse()}, HERE / "sparse.bin")
    torch.save({"weight": counting}, HERE / "protocol4.bin", pickle_protocol=4)
    torch.save({"weight": counting}, HERE / "before_zip.bin", _use_new_zipfile_serialization=False)
    (HERE / "bare_pickle.bin").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=2))

    # What a machine with a GPU writes: the device is a text in the file.
    torch.serialization.register_package(0, lambda storage: "cuda:0", lambda storage, location: None)
    torch.save({"weight": counting}, HERE / "cuda.bin")


if __name__ == "__main__":
    main()
