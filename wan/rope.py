"""Rotary position embedding over (time, height, width), interleaved pairs.

A head's complex pairs are split ``[time | height | width]``; each axis restarts its own frequency
ladder at theta 10000. Tables are computed in float64 and applied in float32; the official code
applies them in float64 too.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

from .ops import widest_float
from .shapes import TokenGrid

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """Real channels given to (time, height, width); they add up to ``head_dim``."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rope_table(grid: TokenGrid, head_dim: int, device: torch.device | None = None) -> Tensor:
    """Cosine and sine of every token's rotation.

    Returns:
        ``(2, L, head_dim // 2)`` float32, ``[0]`` cosine, ``[1]`` sine, tokens in grid order.
    """
    wide = widest_float(device)
    angles = []
    for axis, dim in enumerate(axis_dims(head_dim)):
        exponent = torch.arange(0, dim, 2, dtype=wide, device=device) / dim
        position = torch.arange(grid[axis], dtype=wide, device=device)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = grid[axis]
        ladder = torch.outer(position, THETA**-exponent).reshape(shape)
        angles.append(ladder.expand(*grid, dim // 2))
    angle = rearrange(torch.cat(angles, dim=-1), "t h w d -> (t h w) d")
    return torch.stack([angle.cos(), angle.sin()]).float()


def apply_rope(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the interleaved pairs of ``x``.

    Args:
        x: ``(B, L, N, D)`` queries or keys.
        table: ``(2, L, D // 2)`` float32 from :func:`rope_table`.

    Returns:
        ``(B, L, N, D)`` in ``x``'s dtype, rotated in float32.
    """
    cos, sin = table[:, None, :, None, :]
    pairs = x.float().view(*x.shape[:-1], -1, 2)
    real, imag = pairs.unbind(-1)
    rotated = torch.stack([real * cos - imag * sin, real * sin + imag * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)
