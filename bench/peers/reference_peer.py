#!/usr/bin/env python3
"""Times the official DDL code (eager PyTorch with its own K/V cache) on the CPU, with random weights in the paper's small size.

    git clone https://github.com/yifanzhang-pro/deep-delta-learning DIR
    python3 -m venv V && V/bin/pip install torch==2.11.0 transformers==4.57.6 pydantic        # it does not import under transformers 5
    V/bin/python bench/peers/reference_peer.py --reference DIR [--model DDL-gpt-mha-rope-CC-EC] [--batches 1,8]

Prints one JSON object: decode and prefill tokens per second of one round.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import sys
import time
import types


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=pathlib.Path, required=True, help="checkout of the official repository")
    parser.add_argument("--model", default="DDL-gpt-mha-rope-CC-EC", help="a file of its model/ folder, without .py")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--batches", default="1,8,32", help="sequences that are decoded at a time")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of their prompts")
    parser.add_argument("--new", type=int, default=24, help="tokens that each gets")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompt whose prefill is timed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def stand_in_for_causal_conv1d():
    """The package of this name is for CUDA only; the official code asks it for a depthwise causal convolution."""
    import torch.nn.functional as functional

    def causal_conv1d_fn(x, weight, bias=None, activation=None, **_):
        channels, taps = weight.shape
        return functional.conv1d(functional.pad(x, (taps - 1, 0)), weight.unsqueeze(1), bias, groups=channels)

    module = types.ModuleType("causal_conv1d")
    module.causal_conv1d_fn = causal_conv1d_fn
    sys.modules["causal_conv1d"] = module


def load_official(folder, model):
    """The module of a model file. Its name has hyphens, and it imports its neighbours, so it gets a package."""
    file = folder / "model" / f"{model}.py"
    if not file.exists():
        sys.exit(f"{file} is not there")
    package = types.ModuleType("official_ddl")
    package.__path__ = [str(file.parent)]
    sys.modules[package.__name__] = package
    spec = importlib.util.spec_from_file_location(f"{package.__name__}.{model.replace('-', '_')}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main():
    arguments = parse_arguments()
    os.environ["TRITON_INTERPRET"] = "1"  # it defines Triton kernels when imported, GPU or not
    import torch

    torch.set_num_threads(arguments.threads)
    stand_in_for_causal_conv1d()
    official = load_official(arguments.reference, arguments.model)
    config = official.GPTConfig()
    model = official.GPT(config).to(getattr(torch, arguments.dtype)).eval()

    def random_ids(batch, length):
        return torch.randint(0, config.vocab_size, (batch, length))

    decode = {}
    with torch.inference_mode():
        for batch in map(int, arguments.batches.split(",")):
            cache = model(random_ids(batch, arguments.prompt), use_cache=True, return_dict=True).past_key_values
            token = random_ids(batch, 1)
            begin = None
            for step in range(2 + arguments.new):  # two that do not count
                if step == 2:
                    begin = time.perf_counter()
                cache = model(token, past_key_values=cache, use_cache=True, return_dict=True).past_key_values
            decode[batch] = batch * arguments.new / (time.perf_counter() - begin)
        ids = random_ids(1, arguments.prefill)
        model(ids)
        begin = time.perf_counter()
        model(ids)
        prefill = arguments.prefill / (time.perf_counter() - begin)
    print(json.dumps({"precision": arguments.dtype, "decode_tokens_per_second": decode, "prefill_tokens_per_second": prefill}))


if __name__ == "__main__":
    main()
