"""Convolutions a few rows or a few channels at a time, so that what they need beside frames stays small.

A convolution over the past and the present wants them joined, and one over an enlarged frame wants
it enlarged: three and four times the frame. A slab of either gives the same numbers for its rows.
And every convolution puts its weights in an order of its own, which outweighs small frames: some of
the output's channels give the same numbers as all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from .pages import Room, channels_last

SLAB_BYTES = {"cpu": 2 << 20}
"""Of a convolution's slab by kind of device; its weights are put in order for each."""
WEIGHT_BYTES = {"cpu": 2 << 20}
"""The same of its weights, where they outweigh the frame."""
NORM_BYTES = {"cpu": 1 << 18}
"""The same of a norm's slab, which computes in float32 and has no rows to share between slabs."""
WIDE_SLAB_BYTES = 1 << 27
"""The same of all where many small kernels would cost more than the memory is worth."""

Fill = Callable[[Tensor, int, int], None]
"""Writes rows ``start`` to ``stop`` of a frame into one of that many rows."""


@dataclass(frozen=True, slots=True)
class Filter:
    """A causal convolution of stride 1 that gives one frame and keeps height and width.

    ``weight`` is ``(C_out, C, T, kh, kw)``. Its input is one frame of T frames of C channels joined:
    frames outermost where the channels of a position lie side by side in memory, else channels.
    """

    weight: Tensor
    bias: Tensor | None
    padding: tuple[int, int]

    def weight_2d(self, x: Tensor) -> Tensor:
        """The weight ``(C_out, T * C, kh, kw)`` for an input in the memory order of ``x``."""
        if self.weight.shape[2] == 1:
            return self.weight[:, :, 0]
        if channels_last(x):
            return self.weight.permute(0, 3, 4, 2, 1).flatten(3).permute(0, 3, 1, 2)
        return self.weight.flatten(1, 2)

    def parts(self, count: int) -> list[Filter]:
        """Filters that give up to ``count`` runs of the channels, of equal size but for the last."""
        weights = self.weight.chunk(count)
        biases = [None] * len(weights) if self.bias is None else self.bias.chunk(count)
        return [Filter(w, b, self.padding) for w, b in zip(weights, biases, strict=True)]


def slabs(
    height: int, row: int, device: torch.device, limits: dict[str, int] | None = None
) -> list[tuple[int, int]]:
    """Runs ``(start, stop)`` that cover ``height`` rows of ``row`` bytes each, all but the last alike.

    ``limits`` are bytes of a slab by kind of device, :data:`SLAB_BYTES` if None.
    """
    limit = (limits or SLAB_BYTES).get(device.type, WIDE_SLAB_BYTES)
    rows = max(1, limit // row)
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def conv_whole(given: Filter, x: Tensor) -> Tensor:
    """A convolution of a whole frame ``(B, T * C, H, W)``, a few channels at a time where weights are large.

    Every run of channels reads the frame anew, so its weights are no smaller than the frame.
    """
    limit = max(WEIGHT_BYTES.get(x.device.type, WIDE_SLAB_BYTES), x.nbytes)
    parts = given.parts(-(-given.weight.nbytes // limit))
    if len(parts) == 1:
        return conv2d(x, given.weight_2d(x), given.bias, padding=given.padding)
    out, start = _empty_frame(given, x, x.shape[2], x.shape[3]), 0
    for part in parts:
        stop = start + part.weight.shape[0]
        out[:, start:stop] = conv2d(x, part.weight_2d(x), part.bias, padding=part.padding)
        start = stop
    return out


def conv_rows(
    given: Filter, fill: Fill, like: Tensor, width: int, runs: list[tuple[int, int]], room: Room
) -> Tensor:
    """A convolution whose input is made where it is needed.

    Args:
        given: the convolution.
        fill: writes rows of its input.
        like: a frame of the input's batch, dtype, device and memory order.
        width: of the input.
        runs: the rows of the output that are made at a time, as :func:`slabs` gives them.
        room: what the input is written into.

    Returns:
        ``(B, C_out, height, width)``.
    """
    (_, height), (reach, across) = runs[-1], given.padding
    batch, channels = like.shape[0], given.weight[0, :, :, 0, 0].numel()
    if len(runs) == 1:
        x = room.frame((batch, channels, height, width), like)
        fill(x, 0, height)
        return conv_whole(given, x)
    # What stays is made before what is needed for a moment: behind that it would leave a hole.
    out = _empty_frame(given, like, height, width)
    weight = given.weight_2d(like)
    for start, stop in runs:
        above, below = max(0, reach - start), max(0, stop + reach - height)
        x = room.frame((batch, channels, stop - start + 2 * reach, width), like)
        x[:, :, :above] = 0
        fill(x[:, :, above : x.shape[2] - below], start - reach + above, stop + reach - below)
        x[:, :, x.shape[2] - below :] = 0
        out[:, :, start:stop] = conv2d(x, weight, given.bias, padding=(0, across))
    return out


def _empty_frame(given: Filter, like: Tensor, height: int, width: int) -> Tensor:
    shape = (like.shape[0], given.weight.shape[0], height, width)
    order = torch.channels_last if channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=order)
