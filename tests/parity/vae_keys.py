"""Official Wan2.1 VAE keys to diffusers' AutoencoderKLWan keys, for the parity test only."""

from __future__ import annotations

import re

from wanexperts.wan.config import VAEConfig

RESIDUAL = {
    "residual.0.gamma": "norm1.gamma",
    "residual.2": "conv1",
    "residual.3.gamma": "norm2.gamma",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
MIDDLE = {
    "middle.0.": "mid_block.resnets.0.",
    "middle.1.": "mid_block.attentions.0.",
    "middle.2.": "mid_block.resnets.1.",
}


def diffusers_key(key: str, config: VAEConfig) -> str:
    """The diffusers name of one official key."""
    key = re.sub(r"^conv1\.", "quant_conv.", key)
    key = re.sub(r"^conv2\.", "post_quant_conv.", key)
    key = key.replace("coder.conv1.", "coder.conv_in.")
    key = key.replace("head.0.gamma", "norm_out.gamma").replace("head.2.", "conv_out.")
    key = key.replace("downsamples.", "down_blocks.")
    for official, theirs in (RESIDUAL | MIDDLE).items():
        key = key.replace(official, theirs)
    return re.sub(r"upsamples\.(\d+)\.", lambda m: _up(int(m[1]), config), key)


def _up(index: int, config: VAEConfig) -> str:
    stage, block = divmod(index, config.num_res_blocks + 2)
    kind = "resnets" if block <= config.num_res_blocks else "upsamplers"
    number = block if kind == "resnets" else 0
    return f"up_blocks.{stage}.{kind}.{number}."
