"""Small modules of the transformer: normalisation, timestep features, modulation.

Shape legend: B batch, L tokens, D model dim.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .ops import widest_float

MAX_PERIOD = 10000.0


class Modulation(NamedTuple):
    """Shift, scale and gate of one residual branch, each ``(B, 1, D)`` float32."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


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


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x * (1 + scale) + shift`` in float32. x ``(B, L, D)``; shift, scale ``(B, 1, D)``."""
    return torch.addcmul(shift, x.float(), 1 + scale)


def layer_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm without affine parameters, float32 statistics, returned in ``x``'s dtype."""
    return torch.nn.functional.layer_norm(x.float(), (x.shape[-1],), eps=eps).to(x.dtype)
