"""Rotary position embedding over (time, height, width).

A head's complex pairs, interleaved as they come from the projections, are split ``[time | height |
width]``; each axis restarts its own frequency ladder at theta 10000. Tables are computed in float64
and applied in float32; the official code applies them in float64 too.
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
        ``(L, 2, head_dim // 2)`` float32, ``[:, 0]`` cosine, ``[:, 1]`` sine, tokens in grid order.
    """
    wide = widest_float(device)
    axes = []
    for axis, dim in enumerate(axis_dims(head_dim)):
        exponent = torch.arange(0, dim, 2, dtype=wide, device=device) / dim
        position = torch.arange(grid[axis], dtype=wide, device=device)
        angle = torch.outer(position, THETA**-exponent)
        turn = torch.stack([angle.cos(), angle.sin()], dim=1).float()
        shape = [1, 1, 1, 2, dim // 2]
        shape[axis] = grid[axis]
        axes.append(turn.reshape(shape).expand(*grid, 2, dim // 2))
    return rearrange(torch.cat(axes, dim=-1), "t h w two d -> (t h w) two d")


def apply_rope(x: Tensor, table: Tensor, out: Tensor | None = None) -> Tensor:
    """Rotate the interleaved pairs of ``x``; all real parts come first, then all imaginary ones.

    Scores do not see the order of channels that queries and keys share, and halves are read and
    written in rows where pairs are not.

    Args:
        x: ``(B, L, N, D)`` queries or keys.
        table: ``(L, 2, D // 2)`` float32 from :func:`rope_table`, or ``(B, L, 2, D // 2)``.
        out: where to write the result, like ``x`` in shape and dtype; no gradient flows then.

    Returns:
        ``(B, L, N, D)`` in ``x``'s dtype.
    """
    cos, sin = table.unbind(-2)
    turned = torch.stack([-sin, cos], dim=-2)
    pairs = rearrange(x, "... (h two) -> ... h two", two=2)
    real, imag = (part.unsqueeze(-2) for part in pairs.unbind(-1))
    halves = None if out is None else rearrange(out, "... (two h) -> ... two h", two=2)
    first = torch.mul(real, table.unsqueeze(-3), out=halves)
    rotated = torch.addcmul(first, imag, turned.unsqueeze(-3), out=halves)
    return rotated.flatten(-2).to(x.dtype)
