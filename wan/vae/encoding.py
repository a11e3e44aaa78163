"""Streaming through the encoder, and stopping where nothing moves any more.

An image-to-video clip is one picture and then grey: from some frame on every chunk is the same. A
stage whose input repeats and whose past no longer moves gives the same output for ever, bit for
bit, so it is not run again. Stages settle one after the other, the costly ones at full size first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .blocks import Downsample
from .causal import CausalCache, conv_frame


class EncoderRun:
    """One running stream of the encoder: its past, and the outputs of stages that have settled."""

    def __init__(self, device: torch.device | None = None) -> None:
        """Start a new stream; its past lives on ``device``, or where it is made if None."""
        self.cache = CausalCache(device)
        self._settled: dict[int, list[Tensor]] = {}

    def stage(
        self, index: int, layers: Sequence[Any], frames: list[Tensor], repeated: bool
    ) -> tuple[list[Tensor], bool]:
        """Run a chunk through one stage, or recall what it gave.

        Args:
            index: which stage.
            layers: its layers in order.
            frames: the chunk, frames ``(B, C, H, W)``; used up.
            repeated: whether they equal this stage's frames of the chunk before.

        Returns:
            The stage's frames, and whether they equal those it gave for the chunk before.
        """
        if repeated and index in self._settled:
            return [*self._settled[index]], True
        self._settled.pop(index, None)
        self.cache.watch(repeated)
        if repeated:  # what the stage before recalls is not to be used up
            frames = [frame.clone() for frame in frames]
        out = _through(layers, frames, self.cache)
        if repeated and not self.cache.moved:
            self._settled[index] = [frame.clone() for frame in out]
        return out, False


def _through(layers: Sequence[Any], frames: list[Tensor], cache: CausalCache) -> list[Tensor]:
    done: list[Tensor] = []
    while frames:
        current = [frames.pop(0)]
        for layer in layers:
            x = current.pop()
            if isinstance(layer, Downsample):
                current = layer.step(x, cache)
            elif hasattr(layer, "kernel_size"):
                current = [conv_frame(layer, x, cache)]
            else:
                current = [layer.step(x, cache)]
        done += current
    return done
