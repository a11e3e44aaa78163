"""Memory straight from the system, for what a stream holds long or needs again and again.

The heap gives what lies free in it. Frames that live as long as a stream, and large pieces that are
needed for a moment between many small ones that stay, leave it in pieces that nothing fits into.

Shape legend: a frame is ``(B, C, H, W)`` in either memory order.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

import torch
from torch import Tensor

_CPU = torch.device("cpu")

Shape = tuple[int, int, int, int] | torch.Size


def channels_last(frame: Tensor) -> bool:
    """Whether the channels of a position lie side by side in memory."""
    return frame.stride(1) == 1


def empty_frame(shape: Shape, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """New memory for a frame in the memory order, on the device and in the dtype of ``like``."""
    order = torch.channels_last if channels_last(like) else torch.contiguous_format
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=order)


def pages_like(frame: Tensor) -> Tensor:
    """Memory for a frame of the same shape and order, straight from the system and back to it."""
    flat = torch.frombuffer(mmap.mmap(-1, frame.nbytes), dtype=frame.dtype)
    return _framed(flat, frame.shape, last=channels_last(frame))


class Room:
    """Memory that one step of a stream after the other works in; what it holds is good until the next."""

    def __init__(self) -> None:
        """Nothing is held until something is asked for."""
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def holds(self, frame: Tensor) -> bool:
        """Whether ``frame`` is in it."""
        return frame.untyped_storage().data_ptr() == self._bytes.untyped_storage().data_ptr()

    @staticmethod
    def serves(device: torch.device) -> bool:
        """Whether its memory is on ``device``: elsewhere than on the CPU new memory does as well."""
        return device == _CPU

    def frame(self, shape: Shape, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A frame of any numbers, in the memory order and on the device of ``like``.

        ``dtype`` is that of ``like`` if None.
        """
        dtype = dtype or like.dtype
        if not self.serves(like.device):
            return empty_frame(shape, like, dtype)
        size = torch.Size(shape).numel() * dtype.itemsize
        if self._bytes.numel() < size:
            self._bytes = self._bytes.new_empty(0)  # the old goes before the new comes
            self._bytes = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        return _framed(self._bytes[:size].view(dtype), shape, last=channels_last(like))


@dataclass(frozen=True, slots=True)
class Work:
    """What the layers of one stream work in, one after the other.

    Frames of their own between other things that come and go would leave the heap in pieces.
    """

    slab: Room = field(default_factory=Room)
    """Some rows of what a convolution reads."""
    rows: Room = field(default_factory=Room)
    """Fewer of them in float32, on their way through a norm."""
    frames: tuple[Room, Room] = field(default_factory=lambda: (Room(), Room()))
    """The frame that goes from layer to layer, and the one that is made of it."""

    def beside(self, frame: Tensor) -> Room:
        """The room for what is made of ``frame``, which may be in the other one."""
        first, second = self.frames
        return second if first.holds(frame) else first


def _framed(flat: Tensor, shape: Shape, *, last: bool) -> Tensor:
    batch, channels, height, width = shape
    if last:
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(batch, channels, height, width)
