"""Causal time: the cache that makes a stream of chunks equal to the whole clip.

Every causal layer looks at a fixed number of past frames. A :class:`CausalCache` holds those frames
per layer, so feeding a clip chunk by chunk gives the same numbers as feeding it whole. The cache is
the complete state of a stream; the modules themselves keep none.

Shape legend: video tensors are ``(B, C, T, H, W)``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class CausalCache:
    """The last input frames of every causal layer of one running stream."""

    def __init__(self) -> None:
        """Start a new stream: every layer is at its first frame."""
        self._frames: dict[nn.Module, Tensor] = {}
        self._started: set[nn.Module] = set()

    def starts(self, layer: nn.Module) -> bool:
        """True the first time ``layer`` asks: its next frame is the first of the clip."""
        first = layer not in self._started
        self._started.add(layer)
        return first

    def past(self, layer: nn.Module) -> Tensor | None:
        """Input frames that ``layer`` saw last, ``(B, C, n, H, W)``, or None at the start."""
        return self._frames.get(layer)

    def remember(self, layer: nn.Module, frames: Tensor) -> None:
        """Keep ``frames`` as the past of ``layer``; copied, so that the chunk itself can be freed."""
        self._frames[layer] = frames.detach().clone()

    @property
    def nbytes(self) -> int:
        """Bytes held: constant in the length of the clip."""
        return sum(t.numel() * t.element_size() for t in self._frames.values())


def with_past(layer: nn.Module, x: Tensor, count: int, cache: CausalCache | None) -> Tensor:
    """``x`` with the ``count`` frames before it, zeros where the clip has not begun.

    Args:
        layer: the layer whose past is meant.
        x: ``(B, C, T, H, W)`` the new input frames.
        count: frames of context the layer needs on the left.
        cache: the running stream, or None when ``x`` is the whole clip.

    Returns:
        ``(B, C, count + T, H, W)``.
    """
    past = None if cache is None else cache.past(layer)
    if past is None:
        past = x.new_zeros(*x.shape[:2], count, *x.shape[3:])
    joined = torch.cat([past, x], dim=2)
    if cache is not None:
        cache.remember(layer, joined[:, :, -count:])
    return joined


def causal_conv(conv: Any, x: Tensor, cache: CausalCache | None) -> Tensor:
    """Apply a 3-D convolution that sees only the present and the past.

    Args:
        conv: a Conv3d without temporal padding; kernel size 1 in time needs no past.
        x: ``(B, C, T, H, W)``.
        cache: the running stream, or None when ``x`` is the whole clip.

    Returns:
        ``(B, C_out, T, H_out, W_out)``.
    """
    context = conv.kernel_size[0] - 1
    out: Tensor = conv(with_past(conv, x, context, cache) if context else x)
    return out
