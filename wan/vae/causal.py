"""Causal time: the cache that makes a stream of single frames equal to the whole clip.

Every causal layer looks at a fixed number of past frames. A :class:`CausalCache` holds those frames
per layer, so feeding a clip frame by frame gives the same numbers as feeding it whole. The cache is
the complete state of a stream; the modules themselves keep none.

Shape legend: a clip is ``(B, C, T, H, W)``, a frame ``(B, C, H, W)`` in either memory order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import current
from .pages import Room, Work, channels_last, pages_like
from .slabs import OWN, Fill, Filter, Output, conv_rows, conv_whole, norm_slabs, slabs

_CPU = torch.device("cpu")

Frames = tuple[Tensor, ...]
Before = Callable[[Tensor], Tensor]
"""Gives for some rows of a frame what it gives for the frame, perhaps in float32; good until the next call."""


class CausalCache:
    """What every causal layer of one running stream keeps of its past, mostly its last input frames.

    In the host's memory each layer's past has pages of its own, which later frames are copied into.
    Elsewhere a frame is kept as it is, and whoever hands it over must not change it afterwards.
    """

    def __init__(self, device: torch.device | None = None, work: Work | None = None) -> None:
        """Start a new stream; its past lives on ``device``, or where it is made if None.

        Its layers work in ``work``; streams that take turns may share one.
        """
        self.work = work or Work()
        self._device = device
        self._past: dict[nn.Module, Frames] = {}
        self._waiting: dict[nn.Module, Tensor] = {}
        self._watching = False
        self.moved = False

    def past(self, layer: nn.Module) -> Frames | None:
        """Frames that ``layer`` keeps, oldest first; None before its first one."""
        return self._past.get(layer)

    def begin(self, layer: nn.Module) -> None:
        """Let ``layer`` have an empty past: its first frame came, and is not to be seen again."""
        self._past[layer] = ()

    def keep(self, layer: nn.Module, frame: Tensor, length: int) -> None:
        """Make ``frame`` the newest of the ``length`` frames that ``layer`` sees of its past.

        A tensor that :meth:`past` gave before may hold other numbers afterwards.
        """
        past, device = self._past.get(layer, ()), self._device or frame.device
        self._see(past, (*past, frame)[-length:])
        if device == _CPU:
            frame = (past[0] if len(past) == length else pages_like(frame)).copy_(frame)
        self._past[layer] = (*past, frame.to(device))[-length:]

    def in_pages(self, frame: Tensor) -> bool:
        """Whether the past of ``frame`` is beside it in the host's memory, for :meth:`page`."""
        return frame.device == (self._device or frame.device) == _CPU

    def page(self, layer: nn.Module, like: Tensor, length: int) -> Tensor:
        """Memory for the newest of ``length`` frames, two or more, to be filled and given to :meth:`turn`.

        It is that of the oldest where there are so many, whose numbers are in it until then.
        """
        past = self._past.get(layer, ())
        if len(past) < length:
            return pages_like(like)
        self._see(past[:-1], past[1:])
        return past[0]

    def turn(self, layer: nn.Module, page: Tensor, length: int) -> None:
        """Make what is in ``page`` now the newest frame of ``layer``'s past."""
        past = self._past.get(layer, ())
        self._see(past[-1:] if len(past) == length else (), (page,))
        self._past[layer] = (*past, page)[-length:]

    def replace(self, layer: nn.Module, frames: list[Tensor]) -> None:
        """Make ``frames`` the past of ``layer``, which keeps something else than its input.

        There are as many of them each time.
        """
        past, device = self._past.get(layer, ()), self._device or frames[0].device
        self._see(past, tuple(frames))
        if device == _CPU:
            pages = past or tuple(pages_like(frame) for frame in frames)
            frames = [page.copy_(frame) for page, frame in zip(pages, frames, strict=True)]
        self._past[layer] = tuple(frame.to(device) for frame in frames)

    def _see(self, before: Frames, after: Frames) -> None:
        if self._watching and not self.moved:
            pairs = zip(before, after, strict=False)
            same = len(before) == len(after) and all(
                torch.equal(a, b.to(a.device)) for a, b in pairs
            )
            self.moved = not same

    def set_aside(self, layer: nn.Module, frame: Tensor) -> None:
        """Let ``frame`` wait for the next one, which ``layer`` takes it with."""
        self._waiting[layer] = frame

    def take(self, layer: nn.Module) -> Tensor | None:
        """The frame that waits for ``layer``, no longer waiting, or None."""
        return self._waiting.pop(layer, None)

    def watch(self, watching: bool) -> None:
        """From now on set ``moved`` when any layer's past becomes other numbers than it was."""
        self._watching, self.moved = watching, False

    @property
    def nbytes(self) -> int:
        """Bytes held: constant in the length of the clip."""
        return sum(f.numel() * f.element_size() for past in self._past.values() for f in past)


def conv_clip(conv: Any, x: Tensor) -> Tensor:
    """A 3-D convolution over a whole clip that sees only the present and the past.

    Args:
        conv: a Conv3d without temporal padding.
        x: ``(B, C, T, H, W)`` from the first frame on.

    Returns:
        ``(B, C_out, T, H_out, W_out)``; before the first frame there are zeros.
    """
    if context := conv.kernel_size[0] - 1:
        x = torch.cat([x.new_zeros(*x.shape[:2], context, *x.shape[3:]), x], dim=2)
    out: Tensor = conv(x)
    return out


def conv_frame(
    conv: Any, x: Tensor, cache: CausalCache, output: Output = OWN, before: Before | None = None
) -> Tensor:
    """One output frame of :func:`conv_clip`, which goes where ``output`` says.

    Args:
        conv: a Conv3d that sees past frames, without temporal padding.
        x: the next frame ``(B, C, H, W)`` of the stream.
        cache: of the stream.
        output: where the result goes.
        before: what ``x`` goes through first.

    Returns:
        ``(B, C_out, H_out, W_out)``.
    """
    context, slab = conv.kernel_size[0] - 1, cache.work.slab
    past = [frame.to(x.device) for frame in cache.past(conv) or ()]
    if not cache.in_pages(x):
        frame = x if before is None else before(x).to(x.dtype)
        out = conv_frames(conv, [*past, frame], slab, output)
        cache.keep(conv, frame, context)
        return out
    page, read = cache.page(conv, x, context), reader(x, before)

    def read_and_keep(to: Tensor, start: int, stop: int, free: int) -> None:
        read(to, start, stop, free)
        page[:, :, start:free] = to[:, :, : free - start]

    out = _conv_joined(conv, past, x, slab, output, read_and_keep)
    cache.turn(conv, page, context)
    return out


def reader(x: Tensor, before: Before | None = None) -> Fill:
    """What writes rows of ``x``, or of what ``before`` makes of it: never a whole frame of that."""

    def read(to: Tensor, start: int, stop: int, _: int) -> None:
        if before is None:
            to.copy_(x[:, :, start:stop])
            return
        row = x[:, :, 0].numel() * torch.float32.itemsize
        for top, bottom in norm_slabs(stop - start, row, x.device):
            to[:, :, top:bottom] = before(x[:, :, start + top : start + bottom])

    return read


def conv_frames(conv: Any, frames: list[Tensor], slab: Room, output: Output = OWN) -> Tensor:
    """A 3-D convolution with one output frame, as the 2-D convolution it is.

    Time and channels are summed alike, so n frames of C channels are one of n * C. With fewer
    frames than the kernel is long the clip has just begun: the kernel's earlier part would meet
    zeros and is left out.

    Args:
        conv: a Conv3d without temporal padding.
        frames: ``(B, C, H, W)`` each, oldest first; used up.
        slab: to join them in.
        output: where the result goes.

    Returns:
        ``(B, C_out, H_out, W_out)``.
    """
    return _conv_joined(conv, frames, frames.pop(), slab, output)


def _conv_joined(
    conv: Any, past: list[Tensor], x: Tensor, slab: Room, output: Output, read: Fill | None = None
) -> Tensor:
    """The same of ``past``, which is used up, and the frame like ``x`` that ``read`` writes, or ``x``."""
    count = len(past) + 1
    weight = current(conv, "weight", x)[:, :, -count:]
    bias = None if conv.bias is None else current(conv, "bias", x)
    given, last = Filter(weight, bias, conv.padding[1:]), channels_last(x)
    height, width = x.shape[2:]
    # Kernels put weights in an order of their own for every slab.
    runs = slabs(height, count * x[:, :, 0].nbytes, x.device, least=2 * weight.nbytes)
    if read is None and count == len(runs) == 1:
        return conv_whole(given, x, output)
    read = read or reader(x)

    def join(joined: Tensor, start: int, stop: int, free: int) -> None:
        pattern = "b (t c) h w -> t b c h w" if last else "b (c t) h w -> t b c h w"
        *before, newest = rearrange(joined, pattern, t=count)
        for part, frame in zip(before, past, strict=True):
            part.copy_(frame[:, :, start:stop])
        read(newest, start, stop, free)
        if len(runs) == 1:  # beside what is kept only the joined one is held from now on
            past.clear()

    return conv_rows(given, join, x, width, runs, slab, output)


def conv_ahead(conv: Any, x: Tensor, slab: Room, before: Before) -> list[Tensor]:
    """What one frame adds to its own output frame and to those after it, in float32.

    The sum of what an output frame gets so is that of :func:`conv_clip`; its bias comes with its own
    frame. Where the output has few channels these sums are less to keep than the past.

    Args:
        conv: a Conv3d without temporal padding.
        x: ``(B, C, H, W)``.
        slab: to work in.
        before: what ``x`` goes through first.

    Returns:
        As many ``(B, C_out, H, W)`` as the kernel is long.
    """
    weight = rearrange(current(conv, "weight", x), "o c t kh kw -> (t o) c 1 kh kw")
    given = Filter(weight, None, conv.padding[1:])
    runs = slabs(x.shape[2], x[:, :, 0].nbytes, x.device)

    out = conv_rows(given, reader(x, before), x, x.shape[3], runs, slab)
    parts = [part.to(torch.float32, copy=True) for part in out.chunk(conv.kernel_size[0], dim=1)]
    parts.reverse()  # the kernel's last part meets the present
    if conv.bias is not None:
        parts[0] += current(conv, "bias", x, torch.float32).view(-1, 1, 1)
    return parts
