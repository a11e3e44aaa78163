"""Frames a few rows at a time, so that what a layer needs beside them stays small.

A convolution over the past and the present wants them joined, and one over an enlarged frame wants
it enlarged: three and four times the frame. A slab of either gives the same numbers for its rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

SLAB_ELEMENTS = {"cpu": 1 << 20}
"""Elements of a convolution's slab by kind of device. Its kernel puts the weights in order for each:
slabs of twice the size would save 3 % of a decode, and take 4 % more memory at 128x224."""
NORM_ELEMENTS = {"cpu": 1 << 16}
"""The same of a norm's, which computes in float32 and has no rows to share between slabs."""
WIDE_SLAB_ELEMENTS = 1 << 26
"""The same where many small kernels would cost more than the memory is worth."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A 2-D convolution of stride 1 that keeps height and width."""

    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, int]


def slabs(
    height: int, row: int, device: torch.device, limits: dict[str, int] | None = None
) -> list[tuple[int, int]]:
    """Runs ``(start, stop)`` that cover ``height`` rows of ``row`` elements each, all but the last alike.

    ``limits`` are elements of a slab by kind of device, :data:`SLAB_ELEMENTS` if None.
    """
    limit = (limits or SLAB_ELEMENTS).get(device.type, WIDE_SLAB_ELEMENTS)
    rows = max(1, limit // row)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def conv_rows(
    given: Filter, rows: Callable[[int, int], Tensor], height: int, runs: list[tuple[int, int]]
) -> Tensor:
    """A convolution whose input is made where it is needed.

    Args:
        given: the convolution.
        rows: from rows ``(start, stop)`` to that part of the input, ``(B, C, stop - start, W)``.
        height: rows of the whole input.
        runs: the rows of the output that are made at a time, as :func:`slabs` gives them.

    Returns:
        ``(B, C_out, height, W)``.
    """
    if len(runs) == 1:
        return conv2d(rows(0, height), given.weight, given.bias, padding=given.padding)
    reach, across = given.padding
    out: Tensor | None = None
    for start, stop in runs:
        first, last = max(0, start - reach), min(height, stop + reach)
        x = rows(first, last)
        missing = (first - start + reach, stop + reach - last)
        if any(missing):
            x = pad(x, (0, 0, *missing))
        part = conv2d(x, given.weight, given.bias, padding=(0, across))
        if out is None:
            shape = (*part.shape[:2], height, part.shape[3])
            order = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
            out = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=order)
        out[:, :, start:stop] = part
    assert out is not None
    return out
