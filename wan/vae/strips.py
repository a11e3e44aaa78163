"""Exact horizontal strips of the decoder's upper half.

Above the attention every layer sees a few rows around a position. A strip therefore starts with as
many extra rows as the layers ahead reach over its edge, and every layer drops what no later one
needs: the rows that are left are those of the whole frame. Nothing is blended and nothing in time
is cut; each strip has a causal cache of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .blocks import Head, ResidualBlock, Upsample
from .causal import CausalCache

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodePlan:
    """How a clip is decoded; every plan gives the same numbers, up to rounding.

    ``strips`` is the number of horizontal strips of the decoder's upper part. The past frames of the
    last ``offloaded`` of them wait in the host's memory between frames; if that is all of them, those
    of the lower part do too.
    """

    strips: int = 1
    offloaded: int = 0


WHOLE = DecodePlan()
"""Whole frames, everything on the device: the fastest."""


class DecoderRun:
    """One running stream of the decoder: the past of the part that runs whole and of every strip."""

    def __init__(self, plan: DecodePlan = WHOLE) -> None:
        """Start a new stream; ValueError for a plan that offloads more strips than it has."""
        resident = plan.strips - plan.offloaded
        if plan.strips < 1 or not 0 <= resident <= plan.strips:
            raise ValueError(
                f"{plan} is not a plan; use 1 strip or more and offload no more than all of them"
            )
        self.lower = CausalCache(None if resident else _CPU)
        self.strips = [
            CausalCache(None if i < resident else _CPU, self.lower.work) for i in range(plan.strips)
        ]


class Layer(Protocol):
    """What a strip runs through."""

    def step(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Map the next frame of the stream."""
        ...


def split_rows(rows: int, strips: int) -> list[tuple[int, int]]:
    """``strips`` runs ``(start, stop)`` that cover ``rows``, as equal as they can be.

    Raises:
        ValueError: fewer rows than strips, or no strip at all.
    """
    if not 1 <= strips <= rows:
        raise ValueError(f"strips={strips} does not fit {rows} rows; use 1 to {rows}")
    edges = [rows * i // strips for i in range(strips + 1)]
    return list(pairwise(edges))


def halos(layers: Sequence[object]) -> list[int]:
    """Extra rows that each layer's input needs at an inner edge of a strip."""
    needed, found = 0, []
    for layer in reversed(layers):
        if isinstance(layer, Upsample):
            needed = (needed + 2) // 2  # one row of the doubled frame, and half of all
        elif isinstance(layer, Head):
            needed += 1
        elif isinstance(layer, ResidualBlock):
            needed += 2
        else:
            raise TypeError(
                f"{type(layer).__name__} sees more than some rows; run it on whole frames"
            )
        found.append(needed)
    return found[::-1]


def run_strip(
    layers: Sequence[Layer], x: Tensor, rows: tuple[int, int], cache: CausalCache
) -> Tensor:
    """The next frame's rows that come from ``rows`` of ``x``, through all ``layers``.

    Args:
        layers: residual blocks, spatial upsampling and head.
        x: the whole frame ``(B, C, H, W)``.
        rows: ``(start, stop)`` in ``x``.
        cache: the past of this strip, always used with the same rows.

    Returns:
        ``(B, C_out, s * (stop - start), s * W)`` where the layers enlarge by ``s``.
    """
    (start, stop), top, height = rows, 0, x.shape[2]
    if not isinstance(layers[0], Upsample):  # the others use up what other strips still need
        x = x.clone()
    for layer, halo in zip(layers, halos(layers), strict=True):
        first, last = max(0, start - halo), min(height, stop + halo)
        x = layer.step(x[:, :, first - top : last - top], cache)
        top = first
        if isinstance(layer, Upsample):
            start, stop, top, height = 2 * start, 2 * stop, 2 * top, 2 * height
    return x[:, :, start - top : stop - top]
