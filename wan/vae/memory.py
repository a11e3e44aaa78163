"""What a stream needs beside the weights, counted from the layers, and the plan that fits a budget.

A count has two parts. What is held between frames: the past of every causal layer. And what one
frame needs on its way: the widest moment of any layer, with its input, the joined frames of a
convolution and its output. Both are constant in the length of the clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from ..config import VAEConfig
from ..ops import TorchOps
from ..shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE
from .blocks import AttentionBlock, Downsample, Head, ResidualBlock, Upsample
from .model import RGB, WanVAE
from .slabs import WIDE_SLAB_BYTES
from .strips import WHOLE, DecodePlan, halos, split_rows

PLANS = (
    DecodePlan(strips=1),
    DecodePlan(strips=2),
    *(DecodePlan(strips=4, offloaded=n) for n in (1, 2, 3, 4)),
)
"""Every plan that is considered, the fastest first. Frames go one at a time, so most of the memory is
the past: strips alone save little, and much once the past of some is moved away. With all of it moved
the part that runs whole is the widest, and more strips would not help."""
COUNTED = 0.85
"""Share of the memory in use that the layers account for; the rest is left to kernels and gaps."""
_NORM_ELEMENTS = 1 << 22
_WIDE_SLAB = WIDE_SLAB_BYTES // torch.bfloat16.itemsize
"""Elements; half as many in float32."""
_KERNEL_WEIGHTS = 3
"""Copies of the largest weight a convolution may make: in another dtype, order and block layout."""


@dataclass(frozen=True, slots=True)
class _Need:
    """Elements held between frames, and at the widest moment of a frame beside them."""

    held: int = 0
    working: int = 0

    def __add__(self, other: _Need) -> _Need:
        """Layers after each other."""
        return _Need(self.held + other.held, max(self.working, other.working))


def decode_bytes(
    height: int, width: int, config: VAEConfig, dtype: torch.dtype, plan: DecodePlan = WHOLE
) -> int:
    """Peak bytes on the device while one clip is decoded, beside weights, latents and finished frames.

    Args:
        height: pixels, a multiple of 8.
        width: pixels, a multiple of 8.
        config: sizes of the VAE.
        dtype: of the latents handed in, which is that of the computation.
        plan: strips and where the past is kept.

    Raises:
        ValueError: more strips than there are rows.
    """
    decoder = _on_meta(config).decoder
    rows, columns = height // SPATIAL_STRIDE, width // SPATIAL_STRIDE
    *below, last = decoder.segments()
    away = plan.offloaded == plan.strips
    lower, waiting = _Need(2 * config.z_dim * rows * columns), 0
    for layers, above in pairwise([*below, last]):
        for layer in layers:
            lower += _need(layer, rows * columns, away)
            scale = 2 if isinstance(layer, Upsample) else 1
            rows, columns = rows * scale, columns * scale
        lower += _in_time(above[0], rows * columns, away)
        waiting += 2 * _width(above[0]) * rows * columns  # the frames that time was doubled into
    held, widest = 0 if away else lower.held, lower.working
    for index, strip in enumerate(split_rows(rows, plan.strips)):
        offload = index >= plan.strips - plan.offloaded
        need = _strip(last, strip, (rows, columns), offload)
        held, widest = held + (0 if offload else need.held), max(widest, need.working)
    # A group of frames, and the same stacked.
    finished = 2 * TEMPORAL_STRIDE * RGB * height * width
    return (held + waiting + finished + widest) * dtype.itemsize + _scratch(decoder, dtype)


def encode_bytes(
    height: int, width: int, config: VAEConfig, dtype: torch.dtype, *, offload: bool = False
) -> int:
    """Peak bytes on the device while one clip is encoded, beside weights and pixels; see decode."""
    encoder = _on_meta(config).encoder
    pixels, total, frames = height * width, _Need(2 * RGB * height * width), TEMPORAL_STRIDE
    for layers in encoder.stages():
        waiting = frames * _width(layers[1]) * pixels if total.working else frames * RGB * pixels
        need = _Need()
        for layer in layers:
            if not hasattr(layer, "kernel_size"):
                need += _need(layer, pixels, offload)
        if isinstance(layers[-1], Downsample):
            pixels //= 4
            waiting += frames * _width(layers[-1]) * pixels
            frames //= 2 if layers[-1].temporal else 1
        total += _Need(need.held, need.working + waiting)
    held = 0 if offload else total.held
    return (held + total.working) * dtype.itemsize + _scratch(encoder, dtype)


def strips_for(
    height: int, width: int, config: VAEConfig, dtype: torch.dtype, budget_bytes: float
) -> DecodePlan:
    """The fastest plan whose :func:`decode_bytes` fit the budget, or the smallest there is."""
    needs: dict[DecodePlan, int] = {}
    for plan in _possible(height):
        needs[plan] = decode_bytes(height, width, config, dtype, plan)
        if needs[plan] <= budget_bytes:
            return plan
    return min(needs, key=lambda plan: needs[plan])


def plans_from(height: int, plan: DecodePlan) -> list[DecodePlan]:
    """``plan``, one of those that :func:`strips_for` chooses from, and what to try after it in turn."""
    plans = _possible(height)
    return plans[plans.index(plan) :]


def _possible(height: int) -> list[DecodePlan]:
    return [plan for plan in PLANS if plan.strips <= height // SPATIAL_STRIDE]


def _on_meta(config: VAEConfig) -> WanVAE:
    return WanVAE(config, ops=TorchOps, device=torch.device("meta"))


def _scratch(part: nn.Module, dtype: torch.dtype) -> int:
    largest = max(parameter.numel() for parameter in part.parameters())
    slabs = 0 if dtype == torch.float32 else 2 * _NORM_ELEMENTS * torch.float32.itemsize
    return _KERNEL_WEIGHTS * largest * dtype.itemsize + slabs


def _strip(
    layers: Sequence[nn.Module], strip: tuple[int, int], size: tuple[int, int], offload: bool
) -> _Need:
    """Need of one strip ``(start, stop)`` of a frame of ``size``."""
    (start, stop), (height, width), total = strip, size, _Need()
    for layer, halo in zip(layers, halos(layers), strict=True):
        rows = min(height, stop + halo) - max(0, start - halo)
        total += _need(layer, rows * width, offload)
        if isinstance(layer, Upsample):
            start, stop, height, width = 2 * start, 2 * stop, 2 * height, 2 * width
    return total


def _need(layer: nn.Module, pixels: int, offload: bool) -> _Need:
    """Need of one frame of ``pixels`` positions in a layer, in elements."""
    if isinstance(layer, ResidualBlock):
        dim, out = _width(layer), _width(layer, "residual.6")
        skip = dim if dim == out else dim + out
        joined = (_joined(dim, out, pixels, offload), _joined(out, out, pixels, offload))
        return _Need(2 * (dim + out) * pixels, skip * pixels + max(joined))
    dim = _width(layer)
    if isinstance(layer, Head):
        # Kept: two sums in float32. On the way: input, norm, what three frames get of it, and in float32.
        conv: Any = layer.get_submodule("2")
        out = int(conv.out_channels)
        return _Need(4 * out * pixels, (2 * dim + 9 * out) * pixels)
    if isinstance(layer, AttentionBlock):
        return _Need(0, 9 * dim * pixels)  # frame, norm, qkv twice, result
    if isinstance(layer, Downsample):
        return _Need(dim * pixels // 4 if layer.temporal else 0, 2 * dim * pixels)
    # The frame, rows of it with four times as many positions, all of those with half the channels.
    return _Need(0, 3 * dim * pixels + min(4 * dim * pixels, _WIDE_SLAB))


def _in_time(layer: nn.Module, pixels: int, offload: bool) -> _Need:
    """Need of doubling time before the layer's own step."""
    dim = _width(layer)
    return _Need(2 * dim * pixels, dim * pixels + _joined(dim, 2 * dim, pixels, offload))


def _joined(dim: int, out: int, pixels: int, offload: bool) -> int:
    """Elements alive around a causal 3x3x3 convolution, beside what is held between frames."""
    # Of three frames one or, where the past comes from elsewhere, all are not held in between.
    frames = 3 * dim if offload else dim
    if 3 * dim * pixels > _WIDE_SLAB:
        return (frames + out) * pixels + 2 * _WIDE_SLAB
    return max(frames + 3 * dim, (4 if offload else 3) * dim + out) * pixels


def _width(layer: nn.Module, conv: str | None = None) -> int:
    """Channels that a layer takes in, or one of its convolutions by name."""
    names = {ResidualBlock: "residual.2", Head: "2", AttentionBlock: "proj"}
    found: Any = layer.get_submodule(conv or names.get(type(layer), "resample.1"))
    return int(found.in_channels)
