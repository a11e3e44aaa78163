"""Names of the Wan2.1 VAE's tensors: the official checkpoint on one side, diffusers on the other.

Source: the state dicts of the official ``WanVAE_`` and of diffusers' ``AutoencoderKLWan``. Both count the
encoder's blocks through; of the decoder's, diffusers makes stages of three residual blocks and, but for
the last stage, an upsampler.
"""

from __future__ import annotations

import re

_TOP = {"conv1": "quant_conv", "conv2": "post_quant_conv"}
_CODER = {
    "conv1": "conv_in",
    "head.0": "norm_out",
    "head.2": "conv_out",
    **{f"middle.1.{name}": f"mid_block.attentions.0.{name}" for name in ("norm", "to_qkv", "proj")},
}
_RESIDUAL = {
    "residual.0": "norm1",
    "residual.2": "conv1",
    "residual.3": "norm2",
    "residual.6": "conv2",
    "shortcut": "conv_shortcut",
}
_RESAMPLE = {name: name for name in ("resample.1", "time_conv")}
_BLOCKS_PER_STAGE = 4

_MIDDLE = re.compile(r"middle\.([02])\.(.+)")
_DOWN = re.compile(r"downsamples\.(\d+)\.(.+)")
_UP = re.compile(r"upsamples\.(\d+)\.(.+)")
_MIDDLE_BACK = re.compile(r"mid_block\.resnets\.([01])\.(.+)")
_DOWN_BACK = re.compile(r"down_blocks\.(\d+)\.(.+)")
_UP_BACK = re.compile(r"up_blocks\.(\d+)\.(?:resnets\.([012])|upsamplers\.0)\.(.+)")


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {theirs: ours for ours, theirs in table.items()}


_TOP_BACK, _CODER_BACK, _RESIDUAL_BACK = _inverse(_TOP), _inverse(_CODER), _inverse(_RESIDUAL)


def diffusers_key(official_key: str) -> str | None:
    """Diffusers' name of an official VAE tensor, or None if it is not one; the last part is kept."""
    module, _, leaf = official_key.rpartition(".")
    coder, _, rest = module.partition(".")
    name = _TOP.get(module)
    if coder in ("encoder", "decoder") and (inner := _diffusers_inner(coder, rest)):
        name = f"{coder}.{inner}"
    return f"{name}.{leaf}" if name else None


def official_key(diffusers_key: str) -> str | None:
    """The inverse of :func:`diffusers_key`, or None if unknown."""
    module, _, leaf = diffusers_key.rpartition(".")
    coder, _, rest = module.partition(".")
    name = _TOP_BACK.get(module)
    if coder in ("encoder", "decoder") and (inner := _official_inner(coder, rest)):
        name = f"{coder}.{inner}"
    return f"{name}.{leaf}" if name else None


def _diffusers_inner(coder: str, rest: str) -> str | None:
    """The part between ``encoder.`` or ``decoder.`` and the last one."""
    prefix, name = "", _CODER.get(rest)
    if match := _MIDDLE.fullmatch(rest):
        prefix, name = f"mid_block.resnets.{int(match[1]) // 2}.", _RESIDUAL.get(match[2])
    elif coder == "encoder" and (match := _DOWN.fullmatch(rest)):
        prefix, name = f"down_blocks.{match[1]}.", (_RESIDUAL | _RESAMPLE).get(match[2])
    elif coder == "decoder" and (match := _UP.fullmatch(rest)):
        stage, block = divmod(int(match[1]), _BLOCKS_PER_STAGE)
        if block < _BLOCKS_PER_STAGE - 1:
            prefix, name = f"up_blocks.{stage}.resnets.{block}.", _RESIDUAL.get(match[2])
        else:
            prefix, name = f"up_blocks.{stage}.upsamplers.0.", _RESAMPLE.get(match[2])
    return f"{prefix}{name}" if name else None


def _official_inner(coder: str, rest: str) -> str | None:
    prefix, name = "", _CODER_BACK.get(rest)
    if match := _MIDDLE_BACK.fullmatch(rest):
        prefix, name = f"middle.{int(match[1]) * 2}.", _RESIDUAL_BACK.get(match[2])
    elif coder == "encoder" and (match := _DOWN_BACK.fullmatch(rest)):
        prefix, name = f"downsamples.{match[1]}.", (_RESIDUAL_BACK | _RESAMPLE).get(match[2])
    elif coder == "decoder" and (match := _UP_BACK.fullmatch(rest)):
        table, block = (
            (_RESIDUAL_BACK, int(match[2])) if match[2] else (_RESAMPLE, _BLOCKS_PER_STAGE - 1)
        )
        number = int(match[1]) * _BLOCKS_PER_STAGE + block
        prefix, name = f"upsamples.{number}.", table.get(match[3])
    return f"{prefix}{name}" if name else None
