"""Official transformer keys to diffusers' WanTransformer3DModel keys, for the parity test only."""

from __future__ import annotations

import re

# Order matters: head before the generic modulation, norm3 before anything that contains "norm".
RULES = [
    (r"^head\.modulation", "scale_shift_table"),
    (r"^head\.head", "proj_out"),
    (r"\.modulation", ".scale_shift_table"),
    (r"^text_embedding\.0", "condition_embedder.text_embedder.linear_1"),
    (r"^text_embedding\.2", "condition_embedder.text_embedder.linear_2"),
    (r"^time_embedding\.0", "condition_embedder.time_embedder.linear_1"),
    (r"^time_embedding\.2", "condition_embedder.time_embedder.linear_2"),
    (r"^time_projection\.1", "condition_embedder.time_proj"),
    (r"\.norm3\.", ".norm2."),
    (r"self_attn\.([qkv])\.", r"attn1.to_\1."),
    (r"cross_attn\.([qkv])\.", r"attn2.to_\1."),
    (r"self_attn\.o\.", "attn1.to_out.0."),
    (r"cross_attn\.o\.", "attn2.to_out.0."),
    (r"self_attn\.", "attn1."),
    (r"cross_attn\.", "attn2."),
    (r"ffn\.0\.", "ffn.net.0.proj."),
    (r"ffn\.2\.", "ffn.net.2."),
]


def diffusers_key(key: str) -> str:
    """The diffusers name of one official key."""
    for pattern, replacement in RULES:
        key = re.sub(pattern, replacement, key)
    return key
