"""What packed weights look like, and how they become floats again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from .gguf import PACKINGS, Packing

_SLAB = 1 << 24
_CPU_SLAB = 1 << 20
"""Weights unpacked at a time: enough to be worth a GPU's launches, few enough for a CPU's cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quant:
    """How one weight is packed."""

    format: str
    """``float8_e4m3fn``, ``float8_e5m2``, ``int8`` (with scales), or a GGUF type such as ``Q4_K``."""
    shape: tuple[int, ...]
    """Of the weight."""
    scale_shape: tuple[int, ...] | None = None
    """Of its scale: ``()`` per tensor, ``(out, 1)`` per output channel, None for none beside it."""
    full_precision: bool = False
    """The file asks for a dequantised matrix product instead of a low-precision one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How the numbers of one format are stored."""

    dtype: torch.dtype
    """Of the stored tensor."""
    packing: Packing | None = None
    """Its GGUF blocks; None where each weight is one number, to be multiplied by a scale."""


FORMATS = {
    "float8_e4m3fn": Format(dtype=torch.float8_e4m3fn),
    "float8_e5m2": Format(dtype=torch.float8_e5m2),
    "int8": Format(dtype=torch.int8),
    **{name: Format(dtype=torch.uint8, packing=packing) for name, packing in PACKINGS.items()},
}
"""Formats by the name they have in :class:`Quant`."""

_SAFETENSORS = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8"}


def quant_format(dtype: str) -> str | None:
    """The :class:`Quant` format of a stored dtype: ``F8_E4M3`` -> ``float8_e4m3fn``, ``Q4_K`` -> ``Q4_K``.

    None for whatever is not in ``FORMATS``: plain numbers, and packings that are not read.
    """
    return dtype if dtype in PACKINGS else _SAFETENSORS.get(dtype)


def check(quant: Quant) -> Format:
    """The format of ``quant``; ValueError if it is not read, or shape or scale do not suit it."""
    form = FORMATS.get(quant.format)
    if form is None:
        raise ValueError(f"{quant.format} is not a packing that is read; use {', '.join(FORMATS)}")
    shape, scale = quant.shape or (1,), quant.scale_shape
    if form.packing is not None:
        _check_blocks(quant, form.packing, shape[-1])
    elif scale is None and not form.dtype.is_floating_point:
        raise ValueError(f"{quant.format} without a scale says nothing; use a file that has scales")
    elif scale is not None and scale not in ((), (1,), (1, 1), shape[:1], (shape[0], 1)):
        raise ValueError(
            f"a scale of shape {scale} does not suit a weight of shape {quant.shape}; "
            f"use one number, or one for each of the {shape[0]} rows"
        )
    return form


def _check_blocks(quant: Quant, packing: Packing, width: int) -> None:
    if width % packing.block:
        raise ValueError(
            f"{quant.format} packs {packing.block} weights of a row at a time, which does not divide "
            f"the shape {quant.shape}; use a file that keeps this weight in F16 or F32"
        )
    if quant.scale_shape is not None:
        raise ValueError(
            f"{quant.format} has its scales inside but came with one of shape {quant.scale_shape}; "
            "use a file without it"
        )


def packed_shape(quant: Quant) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype of the stored tensor: the weight's, or (rows, bytes per row) of GGUF blocks.

    Raises:
        ValueError: the format is not read, or the shape or the scale's shape does not suit it.
    """
    form = check(quant)
    if form.packing is None:
        return quant.shape, form.dtype
    *rows, width = quant.shape
    return (prod(rows), width // form.packing.block * form.packing.nbytes), form.dtype


def dequantise(weight: Tensor, scale: Tensor | None, quant: Quant, dtype: torch.dtype) -> Tensor:
    """The weight as numbers.

    Computed in float32 and rounded once to ``dtype``, a slab of rows at a time: beside the result
    there are never more than the temporaries of one slab.

    Args:
        weight: as stored, in ``packed_shape(quant)``; a GGUF weight may come in any shape.
        scale: of ``quant.scale_shape``, any float dtype; None if that is None.
        quant: how ``weight`` is packed.
        dtype: of the result.

    Returns:
        (``quant.shape``) on the device of ``weight``.

    Raises:
        ValueError: weight or scale are not what ``quant`` says, or see :func:`packed_shape`.
    """
    _check_stored(weight, scale, quant)
    packing = FORMATS[quant.format].packing
    if packing is not None:
        blocks = weight.reshape(-1, packing.nbytes)
        out = weight.new_empty((len(blocks), packing.block), dtype=dtype)
        for slab in _slabs(out):
            out[slab] = packing.unpack(blocks[slab])
    elif scale is not None:
        rows = weight.reshape(quant.shape[0], -1)
        factors = scale.to(weight.device, torch.float32).reshape(-1, 1).expand(len(rows), 1)
        out = weight.new_empty(rows.shape, dtype=dtype)
        for slab in _slabs(out):
            out[slab] = rows[slab].float().mul_(factors[slab])
    else:
        out = weight.to(dtype)
    return out.view(quant.shape)


def _slabs(out: Tensor) -> Iterator[slice]:
    """Runs of rows, a slab of numbers each."""
    numbers = _CPU_SLAB if out.device.type == "cpu" else _SLAB
    step = max(1, numbers // max(1, out.shape[1]))
    return (slice(start, start + step) for start in range(0, len(out), step))


def _check_stored(weight: Tensor, scale: Tensor | None, quant: Quant) -> None:
    shape, dtype = packed_shape(quant)
    if weight.dtype != dtype or weight.numel() != prod(shape):
        raise ValueError(
            f"a {weight.dtype} tensor of shape {tuple(weight.shape)} holds no {quant.format} weight of "
            f"shape {quant.shape}; use one of {dtype} and shape {shape}"
        )
    given = None if scale is None else tuple(scale.shape)
    if given != quant.scale_shape:
        raise ValueError(f"the scale has shape {given}; use one of shape {quant.scale_shape}")
