"""Names of the umT5 encoder's tensors: the official checkpoint on one side, transformers on the other."""

from __future__ import annotations

import re

_TOP = {
    "shared": "token_embedding",
    "encoder.final_layer_norm": "norm",
}
_TIED = {"encoder.embed_tokens": "token_embedding"}
_LAYER = {
    "layer.0.layer_norm": "norm1",
    "layer.0.SelfAttention.q": "attn.q",
    "layer.0.SelfAttention.k": "attn.k",
    "layer.0.SelfAttention.v": "attn.v",
    "layer.0.SelfAttention.o": "attn.o",
    "layer.0.SelfAttention.relative_attention_bias": "pos_embedding.embedding",
    "layer.1.layer_norm": "norm2",
    "layer.1.DenseReluDense.wi_0": "ffn.gate.0",
    "layer.1.DenseReluDense.wi_1": "ffn.fc1",
    "layer.1.DenseReluDense.wo": "ffn.fc2",
}
_TOP_BACK = {official: hf for hf, official in _TOP.items()}
_LAYER_BACK = {official: hf for hf, official in _LAYER.items()}
_HF_BLOCK = re.compile(r"encoder\.block\.(\d+)\.(.+)")
_OFFICIAL_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def official_key(hf_key: str) -> str | None:
    """Official name of a transformers (and ComfyUI) umT5 tensor, or None if it is not one.

    The tied duplicate ``encoder.embed_tokens.weight`` gets the name of ``shared.weight``. The last
    part is kept as it is, so ``....q.scale_weight`` of a quantised file finds its layer too.
    """
    module, _, leaf = hf_key.rpartition(".")
    if name := (_TOP | _TIED).get(module):
        return f"{name}.{leaf}"
    if (match := _HF_BLOCK.fullmatch(module)) and (name := _LAYER.get(match[2])):
        return f"blocks.{match[1]}.{name}.{leaf}"
    return None


def hf_key(official_key: str) -> str | None:
    """The inverse of :func:`official_key` (the embedding is ``shared``), or None if unknown."""
    module, _, leaf = official_key.rpartition(".")
    if name := _TOP_BACK.get(module):
        return f"{name}.{leaf}"
    if (match := _OFFICIAL_BLOCK.fullmatch(module)) and (name := _LAYER_BACK.get(match[2])):
        return f"encoder.block.{match[1]}.{name}.{leaf}"
    return None
