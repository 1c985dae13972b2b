#!/usr/bin/env python3
"""Writes a random-weight GGUF file of our baseline's geometry for llama.cpp, as the Qwen3 architecture: the same work per token.

    make_gguf.py OUT.gguf [--size small] [--dtype bf16|q8_0|f32]        (needs numpy and gguf)
"""

import argparse
import pathlib

import gguf
import numpy
from geometry import PAPER_SIZES, baseline

TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def tensors(cfg):
    """(name, shape): one dimension for norms, which are 1, two for matrices."""
    d, inner, m = cfg.hidden_size, cfg.num_attention_heads * cfg.head_dim, cfg.mlp_width
    yield "token_embd.weight", (cfg.vocab_size, d)  # the head is tied to it
    yield "output_norm.weight", (d,)
    for layer in range(cfg.num_hidden_layers):
        block = f"blk.{layer}."
        yield block + "attn_norm.weight", (d,)
        for name in "qkv":
            yield f"{block}attn_{name}.weight", (inner, d)
        yield block + "attn_output.weight", (d, inner)
        yield block + "attn_q_norm.weight", (cfg.head_dim,)
        yield block + "attn_k_norm.weight", (cfg.head_dim,)
        yield block + "ffn_norm.weight", (d,)
        yield block + "ffn_gate.weight", (m, d)
        yield block + "ffn_up.weight", (m, d)
        yield block + "ffn_down.weight", (d, m)


def describe(writer, cfg):
    writer.add_context_length(cfg.block_size)
    writer.add_embedding_length(cfg.hidden_size)
    writer.add_block_count(cfg.num_hidden_layers)
    writer.add_feed_forward_length(cfg.mlp_width)
    writer.add_head_count(cfg.num_attention_heads)
    writer.add_head_count_kv(cfg.num_attention_heads)
    writer.add_key_length(cfg.head_dim)
    writer.add_value_length(cfg.head_dim)
    writer.add_rope_freq_base(cfg.rope_base)
    writer.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    writer.add_vocab_size(cfg.vocab_size)
    # A tokenizer has to be there, but token ids are all that is sent.
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"token{i}" for i in range(cfg.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * cfg.vocab_size)
    writer.add_token_merges(["t o"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(cfg.vocab_size - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--size", choices=PAPER_SIZES, default="small")
    parser.add_argument("--dtype", choices=TYPES, default="bf16")
    arguments = parser.parse_args()

    cfg = baseline(arguments.size)
    quantization, file_type = TYPES[arguments.dtype]
    writer = gguf.GGUFWriter(arguments.out, "qwen3")
    writer.add_file_type(file_type)
    describe(writer, cfg)
    rng = numpy.random.default_rng(0)
    for name, shape in tensors(cfg):
        if len(shape) == 1:
            writer.add_tensor(name, numpy.ones(shape, numpy.float32))
        else:
            values = rng.standard_normal(shape, numpy.float32) * numpy.float32(0.02)
            writer.add_tensor(name, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
