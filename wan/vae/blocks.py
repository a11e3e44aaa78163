"""Building blocks of the Wan2.1 video VAE; attribute names equal the official checkpoint keys.

Shape legend: video tensors are ``(B, C, T, H, W)``.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import sdpa
from ..ops import Ops, cast_like
from .causal import CausalCache, causal_conv, with_past

NORM_EPS = 1e-12


class ChannelNorm(nn.Module):
    """Scale every position to unit root-mean-square over its channels (official ``RMS_norm``)."""

    def __init__(self, dim: int, spatial_dims: int, *, factory: dict[str, object]) -> None:
        """``spatial_dims`` is 3 for video and 2 for frames: the stored gamma has that many ones."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * spatial_dims, **factory))  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over axis 1 in float32 (in float16 the scale can overflow), return ``x``'s dtype."""
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        scale = (x.shape[1] ** 0.5) / norm.clamp_min(NORM_EPS)
        out: Tensor = x * scale * cast_like(self.gamma, scale)
        return out.to(x.dtype)


class ResidualBlock(nn.Module):
    """Two causal convolutions with a skip: ``x -> (B, out_dim, T, H, W)``."""

    def __init__(self, in_dim: int, out_dim: int, ops: Ops, factory: dict[str, object]) -> None:
        """Indices inside ``residual`` follow the official keys (5 was a dropout)."""
        super().__init__()
        self.residual = nn.Sequential(
            ChannelNorm(in_dim, 3, factory=factory),
            nn.SiLU(),
            ops.Conv3d(in_dim, out_dim, 3, padding=(0, 1, 1), **factory),
            ChannelNorm(out_dim, 3, factory=factory),
            nn.SiLU(),
            nn.Identity(),
            ops.Conv3d(out_dim, out_dim, 3, padding=(0, 1, 1), **factory),
        )
        self.shortcut = (
            ops.Conv3d(in_dim, out_dim, 1, **factory) if in_dim != out_dim else nn.Identity()
        )

    def forward(self, x: Tensor, cache: CausalCache | None) -> Tensor:
        """Map ``(B, in_dim, T, H, W)`` to ``(B, out_dim, T, H, W)``."""
        skip: Tensor = self.shortcut(x)
        for layer in self.residual:
            x = causal_conv(layer, x, cache) if hasattr(layer, "kernel_size") else layer(x)
        return skip + x


class AttentionBlock(nn.Module):
    """Single-head self-attention inside every frame."""

    def __init__(self, dim: int, ops: Ops, factory: dict[str, object]) -> None:
        """``dim`` channels, one head of that width."""
        super().__init__()
        self.norm = ChannelNorm(dim, 2, factory=factory)
        self.to_qkv = ops.Conv2d(dim, dim * 3, 1, **factory)
        self.proj = ops.Conv2d(dim, dim, 1, **factory)

    def forward(self, x: Tensor, cache: CausalCache | None) -> Tensor:
        """Same shape in and out; frames do not see each other, so no cache is used."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        qkv = self.to_qkv(self.norm(frames))
        # Contiguous, because fused attention kernels want the channels side by side.
        q, k, v = rearrange(qkv, "f (three c) h w -> three f (h w) 1 c", three=3).contiguous()
        out = rearrange(sdpa(q, k, v), "f (h w) c -> f c h w", h=x.shape[3])
        update: Tensor = rearrange(self.proj(out), "(b t) c h w -> b c t h w", b=x.shape[0])
        return x + update


def _per_frame(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a 2-D layer to every frame of ``(B, C, T, H, W)``."""
    frames: Tensor = layer(rearrange(x, "b c t h w -> (b t) c h w"))
    out: Tensor = rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])
    return out


class Downsample(nn.Module):
    """Halve height and width; with ``temporal`` also turn 1 + 2k frames into 1 + k."""

    def __init__(self, dim: int, temporal: bool, ops: Ops, factory: dict[str, object]) -> None:
        """Channels stay; padding is one row and column at the right and bottom."""
        super().__init__()
        self.resample = nn.Sequential(
            nn.ZeroPad2d((0, 1, 0, 1)), ops.Conv2d(dim, dim, 3, stride=2, **factory)
        )
        if temporal:
            self.time_conv = ops.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1), **factory)
        self.temporal = temporal

    def forward(self, x: Tensor, cache: CausalCache | None) -> Tensor:
        """Space first, then time. The first frame of a clip passes the time step untouched."""
        x = _per_frame(self.resample, x)
        if not self.temporal:
            return x
        if cache is None or cache.starts(self):
            first, context = x[:, :, :1], x
            if cache is not None:
                cache.remember(self.time_conv, x[:, :, -1:])
        else:
            first, context = x[:, :, :0], with_past(self.time_conv, x, 1, cache)
        if context.shape[2] < self.time_conv.kernel_size[0]:
            return first
        return torch.cat([first, self.time_conv(context)], dim=2)


class Upsample(nn.Module):
    """Double height and width and halve the channels; with ``temporal`` 1 + k frames become 1 + 2k."""

    def __init__(self, dim: int, temporal: bool, ops: Ops, factory: dict[str, object]) -> None:
        """Maps ``dim`` channels to ``dim // 2``."""
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"),
            ops.Conv2d(dim, dim // 2, 3, padding=1, **factory),
        )
        if temporal:
            self.time_conv = ops.Conv3d(dim, dim * 2, (3, 1, 1), **factory)
        self.temporal = temporal

    def forward(self, x: Tensor, cache: CausalCache | None) -> Tensor:
        """Time first, then space. The clip's first frame takes no part in the time step at all."""
        if self.temporal:
            starts = cache is None or cache.starts(self)
            first, rest = (x[:, :, :1], x[:, :, 1:]) if starts else (x[:, :, :0], x)
            if rest.shape[2]:
                rest = causal_conv(self.time_conv, rest, cache)
                rest = rearrange(rest, "b (two c) t h w -> b c (t two) h w", two=2)
            x = torch.cat([first, rest], dim=2)
        return _per_frame(self.resample, x)
