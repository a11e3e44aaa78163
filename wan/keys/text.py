"""Names of the umT5 encoder's tensors: the official checkpoint, transformers, and GGUF."""

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
_GGUF_TOP = {"token_embd": "token_embedding", "enc.output_norm": "norm"}
_GGUF_LAYER = {
    "attn_norm": "norm1",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_o": "attn.o",
    "attn_rel_b": "pos_embedding.embedding",
    "ffn_norm": "norm2",
    "ffn_gate": "ffn.gate.0",
    "ffn_up": "ffn.fc1",
    "ffn_down": "ffn.fc2",
}
_TOP_BACK = {official: hf for hf, official in _TOP.items()}
_LAYER_BACK = {official: hf for hf, official in _LAYER.items()}
_HF_BLOCK = re.compile(r"encoder\.block\.(\d+)\.(.+)")
_GGUF_BLOCK = re.compile(r"enc\.blk\.(\d+)\.(.+)")
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


def gguf_key(name: str) -> str | None:
    """Official name of a tensor of a GGUF file of architecture ``t5`` or ``t5encoder``, or None.

    Source: the tensor names of the ``gguf`` package. The decoder's (``dec.``) are None.
    """
    module, _, leaf = name.rpartition(".")
    if official := _GGUF_TOP.get(module):
        return f"{official}.{leaf}"
    if (match := _GGUF_BLOCK.fullmatch(module)) and (official := _GGUF_LAYER.get(match[2])):
        return f"blocks.{match[1]}.{official}.{leaf}"
    return None
