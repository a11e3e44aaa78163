"""Small pieces of the transformer: normalisation, timestep features, modulation, weights made ready.

Shape legend: B batch, L tokens, D model dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops import RMSNorm, current, widest_float

MAX_PERIOD = 10000.0


class Modulation(NamedTuple):
    """Shift, scale and gate of one residual branch, each ``(B, 1, D)`` float32."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


Linear = Callable[[Tensor], Tensor]
Ready = Callable[[nn.Module, Tensor], Linear]
"""``(layer, x)`` to the layer as a function of inputs like ``x``; see :func:`ready`."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A linear map whose weight (out, in) and bias (out,) fit its input's device and dtype."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)``."""
        return functional.linear(x, self.weight, self.bias)


def ready(layer: nn.Module, x: Tensor) -> Linear:
    """A linear layer for many inputs like ``x``: cast, patched and unpacked once, while it is held.

    A layer of another maker is called as it is.
    """
    plain: Callable[[Tensor], tuple[Tensor, Tensor | None]] | None = getattr(layer, "plain", None)
    if plain is None:
        return layer.__call__
    weight, bias = plain(x)
    return Plain(weight, bias)


def write(linear: Linear, x: Tensor, out: Tensor) -> None:
    """``out[:] = linear(x)``, without a copy where the product can be written in place."""
    if isinstance(linear, Plain) and linear.bias is not None and out.is_contiguous():
        rows = out.view(-1, out.shape[-1])
        torch.addmm(linear.bias, x.reshape(-1, x.shape[-1]), linear.weight.t(), out=rows)
    else:
        out.copy_(linear(x))


def timestep_features(timestep: Tensor, freq_dim: int) -> Tensor:
    """Sinusoidal features of a timestep, cosine half first.

    Args:
        timestep: ``(B,)``, in [0, 1000], any real dtype.
        freq_dim: even number of features.

    Returns:
        ``(B, freq_dim)`` float32; the angles are taken in float64 as the official code does.
    """
    wide = widest_float(timestep.device)
    half = freq_dim // 2
    exponent = torch.arange(half, dtype=wide, device=timestep.device) / half
    frequencies = torch.exp(-math.log(MAX_PERIOD) * exponent)
    angles = timestep.to(wide)[:, None] * frequencies[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift`` in ``x``'s dtype, statistics in float32.

    x ``(B, L, D)``; shift, scale ``(B, 1, D)`` float32. One pass where the rows are one sample's.
    """
    if len(shift) == 1:
        weight, bias = (1 + scale).flatten().to(x.dtype), shift.flatten().to(x.dtype)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    normed = functional.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def weighted(norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """RMS norm of ``x (..., D)`` but for a factor of each row, for who multiplies rows anyway.

    Returns:
        The rows in ``x``'s dtype, and their factors ``(..., 1)`` float32: None where they are in the
        rows already, because the norm is one kernel, another maker's, or needed for float16's range.
    """
    if not isinstance(norm, RMSNorm) or norm.is_fused(x) or x.dtype == torch.float16:
        return norm(x), None
    return x * current(norm, "weight", x), norm.scale(x)


def gelu(linear: Linear, x: Tensor) -> Tensor:
    """GELU of ``linear(x)`` by its tanh formula; without gradients in place."""
    if torch.is_grad_enabled():
        return functional.gelu(linear(x), approximate="tanh")
    out: Tensor
    fused = not torch.compiler.is_compiling() and x.dtype == ends_in_gelu()
    if fused and isinstance(linear, Plain) and x.device.type == "cpu":
        given = linear.weight, linear.bias
        out = torch.ops.mkldnn._linear_pointwise(x, *given, "gelu", [], "tanh")
    else:
        out = torch.ops.aten.gelu_(linear(x), approximate="tanh")
    return out


@cache
def ends_in_gelu() -> torch.dtype | None:
    """The dtype in which a product on this CPU can end in GELU, which saves the widest pass of a block."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
