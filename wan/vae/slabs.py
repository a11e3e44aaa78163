"""Convolutions a few rows or a few channels at a time, so that what they need beside frames stays small.

A convolution over the past and the present wants them joined, and one over an enlarged frame wants
it enlarged: three and four times the frame. A slab of either gives the same numbers for its rows.
And every convolution puts its weights in an order of its own, which outweighs small frames: some of
the output's channels give the same numbers as all, but for the rounding of another kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from .pages import Room, Shape, channels_last, empty_frame

SLAB_BYTES = {"cpu": 2 << 20}
"""Of a convolution's slab by kind of device; its weights are put in order for each."""
SLABS = 16
"""As many as a frame has at most: of a large one they are larger."""
WEIGHT_NUMBERS = {"cpu": 1 << 18}
"""Of the weights that are put in order at once, where those of a layer outweigh half its frame."""
WEIGHT_CHANNELS = 96
"""Of the output they are for: multiples of 16, for kernels of 8 more take 1.3 to 1.5 times as long (AVX-512).
Every part reads the frame anew: parts of 48 cost a decode of small frames 16 % with AMX."""
NORM_BYTES = {"cpu": 1 << 19}
"""The same of a norm's slab, which computes in float32 and has no rows to share between slabs."""
WIDE_SLAB_BYTES = 1 << 27
"""The same of all where many small kernels would cost more than the memory is worth."""

Fill = Callable[[Tensor, int, int, int], None]
"""Writes rows ``start`` to ``stop`` of a frame into one of that many rows.

Called from the top to the bottom; those before the last argument are not asked for again.
"""


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

    def joined(self, x: Tensor) -> Filter:
        """The same for joined frames in the memory order of ``x``: its weights have their order then."""
        return replace(self, weight=self.weight_2d(x).unsqueeze(2))

    def parts(self, channels: int) -> list[Filter]:
        """Filters that give so many of the channels each, but for the last."""
        weights = torch.split(self.weight, channels)
        biases = [None] * len(weights) if self.bias is None else torch.split(self.bias, channels)
        return [replace(self, weight=w, bias=b) for w, b in zip(weights, biases, strict=True)]


@dataclass(frozen=True, slots=True)
class Output:
    """Where a convolution's output goes: into ``room``, onto a frame as a sum, or to memory of its own."""

    room: Room | None = None
    onto: Tensor | None = None

    def frame(self, shape: Shape, like: Tensor) -> Tensor:
        """The frame that it is put into, in the memory order of ``like``."""
        if self.onto is not None:
            return self.onto
        return self.room.frame(shape, like) if self.room else empty_frame(shape, like)

    def put(self, to: Tensor, part: Tensor) -> None:
        """Some rows or channels of it, at their place ``to`` in the frame."""
        if self.onto is None:
            to.copy_(part)
        else:
            to += part

    def whole(self, out: Tensor) -> Tensor:
        """The frame with all of it at once."""
        if self.onto is None and not (self.room and self.room.serves(out.device)):
            return out
        frame = self.frame(out.shape, out)
        self.put(frame, out)
        return frame


OWN = Output()


def slabs(height: int, row: int, device: torch.device, least: int = 0) -> list[tuple[int, int]]:
    """Runs ``(start, stop)`` that cover a convolution's ``height`` rows of ``row`` bytes each.

    All but the last are alike, as many rows as fit into ``least`` bytes or more.
    """
    limit = SLAB_BYTES.get(device.type, WIDE_SLAB_BYTES)
    return _runs(height, max(max(limit, least) // row, -(-height // SLABS)))


def norm_slabs(height: int, row: int, device: torch.device) -> list[tuple[int, int]]:
    """The same of a norm, with ``row`` bytes in float32."""
    return _runs(height, NORM_BYTES.get(device.type, WIDE_SLAB_BYTES) // row)


def _runs(height: int, rows: int) -> list[tuple[int, int]]:
    rows = max(1, rows)
    rows = -(-height // -(-height // rows))  # all alike, but for the last
    return [(top, min(top + rows, height)) for top in range(0, height, rows)]


def conv_whole(given: Filter, x: Tensor, output: Output = OWN) -> Tensor:
    """A convolution of a whole frame ``(B, T * C, H, W)``, a few channels at a time where weights are large."""
    parts = _parts(given, x.device, x.numel())
    if len(parts) == 1:
        return output.whole(conv2d(x, given.weight_2d(x), given.bias, padding=given.padding))
    out = output.frame((x.shape[0], given.weight.shape[0], *x.shape[2:]), x)
    _put_parts(parts, x, out, output)
    return out


def _parts(given: Filter, device: torch.device, frame: int) -> list[Filter]:
    """What is convolved at a time, a few channels where weights outweigh a frame of so many numbers.

    Every part reads the frame anew, so its weights are about half of it or more.
    """
    most, channel = WEIGHT_NUMBERS.get(device.type), given.weight[0].numel()
    if most is None or given.weight.numel() <= (most := max(most, frame // 2)):
        return [given]
    return given.parts(max(1, most // channel // WEIGHT_CHANNELS) * WEIGHT_CHANNELS)


def _put_parts(parts: list[Filter], x: Tensor, to: Tensor, output: Output) -> None:
    start = 0
    for part in parts:
        stop = start + part.weight.shape[0]
        made = conv2d(x, part.weight_2d(x), part.bias, padding=part.padding)
        output.put(to[:, start:stop], made)
        start = stop


def conv_rows(
    given: Filter,
    fill: Fill,
    like: Tensor,
    width: int,
    runs: list[tuple[int, int]],
    slab: Room,
    output: Output = OWN,
) -> Tensor:
    """A convolution whose input is made where it is needed.

    Args:
        given: the convolution.
        fill: writes rows of its input.
        like: a frame of the input's batch, dtype, device and memory order.
        width: of the input.
        runs: the rows of the output that are made at a time, as :func:`slabs` gives them.
        slab: what the input is written into.
        output: where the result goes.

    Returns:
        ``(B, C_out, height, width)``.
    """
    (_, height), (reach, across) = runs[-1], given.padding
    batch, channels = like.shape[0], given.weight[0, :, :, 0, 0].numel()
    if len(runs) == 1:
        x = slab.frame((batch, channels, height, width), like)
        fill(x, 0, height, height)
        return conv_whole(given, x, output)
    # What stays is made before what is needed for a moment: behind that it would leave a hole.
    out = output.frame((batch, given.weight.shape[0], height, width), like)
    frame = batch * channels * height * width
    parts = _parts(replace(given, padding=(0, across)), like.device, frame)
    if len(parts) == 1:  # in the kernel's order once for all rows
        parts = [parts[0].joined(like)]
    for start, stop in runs:
        above, below = max(0, reach - start), max(0, stop + reach - height)
        x = slab.frame((batch, channels, stop - start + 2 * reach, width), like)
        x[:, :, :above] = 0
        free = height if stop == height else max(0, stop - reach)
        inner = x[:, :, above : x.shape[2] - below]
        fill(inner, start - reach + above, stop + reach - below, free)
        x[:, :, x.shape[2] - below :] = 0
        _put_parts(parts, x, out[:, :, start:stop], output)
    return out
