"""The plain transformer of our baseline's geometry with random weights, as a Qwen3 folder for peers that read those.

Needs the transformers and torch of the peer's own virtual environment; either major version of transformers since 4 serves.
"""

from geometry import baseline

END_TOKEN = 256  # the only one beside bytes that a tokenizer has to know


def save(size, folder):
    """Writes config.json and model.safetensors in bfloat16, no tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    cfg = baseline(size)
    config = Qwen3Config(
        vocab_size=cfg.vocab_size, hidden_size=cfg.hidden_size, intermediate_size=cfg.mlp_width,
        num_hidden_layers=cfg.num_hidden_layers, num_attention_heads=cfg.num_attention_heads,
        num_key_value_heads=cfg.num_attention_heads, head_dim=cfg.head_dim, max_position_embeddings=cfg.block_size,
        rms_norm_eps=cfg.rms_norm_eps, rope_theta=cfg.rope_base, tie_word_embeddings=True,
        bos_token_id=END_TOKEN, eos_token_id=END_TOKEN)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
