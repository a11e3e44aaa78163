"""Causal time: the cache that makes a stream of single frames equal to the whole clip.

Every causal layer looks at a fixed number of past frames. A :class:`CausalCache` holds those frames
per layer, so feeding a clip frame by frame gives the same numbers as feeding it whole. The cache is
the complete state of a stream; the modules themselves keep none.

Shape legend: a clip is ``(B, C, T, H, W)``, a frame ``(B, C, H, W)`` in either memory order.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..ops import current
from .pages import Room, Work, channels_last, pages_like
from .slabs import OWN, Filter, Output, conv_rows, conv_whole, slabs

_CPU = torch.device("cpu")

Frames = tuple[Tensor, ...]


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


def conv_frame(conv: Any, x: Tensor, cache: CausalCache, output: Output = OWN) -> Tensor:
    """One output frame of :func:`conv_clip`: ``x`` is the next frame of the stream.

    It goes where ``output`` says.

    Returns:
        ``(B, C_out, H_out, W_out)``.
    """
    context = conv.kernel_size[0] - 1
    past = (cache.past(conv) or ()) if context else ()
    out = conv_frames(conv, [*(f.to(x.device) for f in past), x], cache.work.slab, output)
    if context:
        cache.keep(conv, x, context)
    return out


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
    x, count = frames[-1], len(frames)
    weight = current(conv, "weight", x)[:, :, -count:]
    bias = None if conv.bias is None else current(conv, "bias", x)
    given, last = Filter(weight, bias, conv.padding[1:]), channels_last(x)
    height, width = x.shape[2:]
    # Channels apart, the kernel puts weights and rows in an order of its own: as much of both.
    least = 0 if last else weight.nbytes
    runs = slabs(height, count * x[:, :, 0].nbytes, x.device, least)
    if count == len(runs) == 1:
        return conv_whole(given, x, output)

    def join(joined: Tensor, start: int, stop: int) -> None:
        rows = [frame[:, :, start:stop] for frame in frames]
        if last:
            torch.cat(rows, dim=1, out=joined)
        else:
            apart = rearrange(joined, "b (c t) h w -> b c t h w", t=count)
            torch.stack(rows, dim=2, out=apart)
        if len(runs) == 1:  # beside the past only the joined one is held from now on
            frames.clear()

    return conv_rows(given, join, x, width, runs, slab, output)


def conv_ahead(conv: Any, x: Tensor, slab: Room) -> list[Tensor]:
    """What one frame adds to its own output frame and to those after it, in float32.

    The sum of what an output frame gets so is that of :func:`conv_clip`; its bias comes with its own
    frame. Where the output has few channels these sums are less to keep than the past.

    Args:
        conv: a Conv3d without temporal padding.
        x: ``(B, C, H, W)``.
        slab: to work in.

    Returns:
        As many ``(B, C_out, H, W)`` as the kernel is long.
    """
    weight = rearrange(current(conv, "weight", x), "o c t kh kw -> (t o) c 1 kh kw")
    given = Filter(weight, None, conv.padding[1:])
    runs = slabs(x.shape[2], x[:, :, 0].nbytes, x.device)

    def rows(to: Tensor, start: int, stop: int) -> None:
        to.copy_(x[:, :, start:stop])

    whole = len(runs) == 1
    out = conv_whole(given, x) if whole else conv_rows(given, rows, x, x.shape[3], runs, slab)
    parts = [part.to(torch.float32, copy=True) for part in out.chunk(conv.kernel_size[0], dim=1)]
    parts.reverse()  # the kernel's last part meets the present
    if conv.bias is not None:
        parts[0] += current(conv, "bias", x, torch.float32).view(-1, 1, 1)
    return parts
