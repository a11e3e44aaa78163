"""Weights of other models and files of other kinds, recognised by a name that only they have."""

from __future__ import annotations

import re
from collections.abc import Iterable

_LORA = re.compile(r".*(\.|_)(lora_(up|down|A|B)|lokr_w\d(_[ab])?|hada_w\d_[ab])\b.*")
_MODELS = {
    "vace_blocks.0.before_proj": "a VACE module without its model",
    "input_blocks.0.0.weight": "a Stable Diffusion model",
    "down_blocks.0.resnets.0.time_emb_proj": "a Stable Diffusion model",
    "joint_blocks.0.context_block": "a Stable Diffusion 3 model",
    "txt_in.individual_token_refiner": "a HunyuanVideo model",
    "double_blocks.0.img_attn.norm.key_norm.scale": "a Flux model",
    "single_transformer_blocks.0.": "a Flux model",
    "adaln_single.emb.timestep_embedder": "an LTX-Video model",
    "txt_norm.weight": "a Qwen-Image model",
    "blocks.block0.blocks.0.": "a Cosmos model",
    "t5_yproj.weight": "a Mochi model",
    "cap_embedder.1.weight": "a Lumina or Z-Image model",
    "decoder.mid.block_1.norm1.weight": "the VAE of an image model",
    "decoder.mid_block.resnets.0.norm1.weight": "the VAE of an image model",
    "text_model.encoder.layers.0.": "a CLIP text encoder",
    "model.layers.0.": "a language model",
    "blk.0.attn_q.weight": "a language model",
}
"""Part of a tensor's name -> what has it; the first that is found counts."""


def name_foreign(names: Iterable[str]) -> str | None:
    """What weights of these names are, None if no known kind."""
    listed = list(names)
    if any(_LORA.fullmatch(name) for name in listed):
        return "a LoRA"
    for mark, model in _MODELS.items():
        if any(mark in name for name in listed):
            return model
    return None
