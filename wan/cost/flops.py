"""Floating-point operations of a forward, exactly: one multiplication and one addition count two."""

from __future__ import annotations

from ..config import TransformerConfig


def forward_flops(config: TransformerConfig, tokens: int) -> int:
    """Operations of one forward of one expert over ``tokens`` tokens of one latent.

    Counted are matrix products, convolutions and attention, as PyTorch's ``FlopCounterMode`` does;
    norms, activations and rotations are memory traffic, not arithmetic worth counting.
    """
    return config.num_layers * block_flops(config, tokens) + outside_flops(config, tokens)


def block_flops(config: TransformerConfig, tokens: int) -> int:
    """Operations of one block: six projections of tokens, two of text, feed-forward, attention."""
    dim, text = config.dim, config.text_len
    linear = 6 * tokens * dim**2 + 2 * text * dim**2 + 2 * tokens * dim * config.ffn_dim
    return 2 * linear + attention_flops(config, tokens)


def attention_flops(config: TransformerConfig, tokens: int) -> int:
    """Operations of self- and cross-attention of one block, projections not counted."""
    return 4 * tokens * (tokens + config.text_len) * config.dim


def outside_flops(config: TransformerConfig, tokens: int) -> int:
    """Operations before and after the blocks: patches, text, time, head."""
    dim, patch = config.dim, config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
    patches = tokens * patch * (config.in_dim + config.out_dim) * dim
    text = config.text_len * (config.text_dim + dim) * dim
    time = (config.freq_dim + 7 * dim) * dim
    return 2 * (patches + text + time)
