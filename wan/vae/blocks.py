"""Building blocks of the Wan2.1 video VAE; attribute names equal the official checkpoint keys.

Each block has two ways: ``forward`` takes a whole clip ``(B, C, T, H, W)`` and is differentiable;
``step`` takes the next frame ``(B, C, H, W)`` of a stream, whose past is in a cache.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import conv2d, rms_norm, silu

from ..attention import sdpa
from ..ops import Ops, cast_like, current
from .causal import Before, CausalCache, conv_ahead, conv_clip, conv_frame, conv_frames
from .pages import Room
from .slabs import Filter, Output, conv_rows, slabs

NORM_EPS = 1e-12


class ChannelNorm(nn.Module):
    """Scale every position to unit root-mean-square over its channels (official ``RMS_norm``)."""

    def __init__(self, dim: int, spatial_dims: int, *, factory: dict[str, object]) -> None:
        """``spatial_dims`` is 3 for video and 2 for frames: the stored gamma has that many ones."""
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *[1] * spatial_dims, **factory))  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over axis 1 in float32 (in float16 the scale can overflow), return ``x``'s dtype."""
        scale = _scale(x)
        out: Tensor = x * scale * cast_like(self.gamma, scale)
        return out.to(x.dtype)


def _scale(x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
    scale: Tensor = (x.shape[1] ** 0.5) / norm.clamp_min(NORM_EPS)
    return scale


def activation(norm: ChannelNorm, x: Tensor, room: Room) -> Before:
    """``silu(norm(x))`` of rows of frames like ``x``, with few passes and small temporaries.

    On a CPU it gives float32 in ``room``, elsewhere ``x``'s dtype.
    """
    gamma = current(norm, "gamma", x, torch.float32)

    def activated(rows: Tensor) -> Tensor:
        if not rows.is_cpu:
            return activated_by_kernel(rows, gamma)
        wide = room.frame(rows.shape, rows, torch.float32).copy_(rows)
        wide *= _scale(wide)
        wide *= gamma.view(-1, 1, 1)
        return silu(wide, inplace=True)

    return activated


def activated_by_kernel(x: Tensor, gamma: Tensor) -> Tensor:
    """The same by the fused norm that GPUs have; gamma has C elements."""
    dim = x.shape[1]
    weight = gamma.flatten().to(x.dtype)
    out = rms_norm(x.movedim(1, -1), (dim,), weight, eps=NORM_EPS**2 / dim)
    return silu(out, inplace=True).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Two causal convolutions with a skip: ``in_dim`` channels to ``out_dim``."""

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

    def forward(self, x: Tensor) -> Tensor:
        """Map a clip ``(B, in_dim, T, H, W)`` to ``(B, out_dim, T, H, W)``."""
        skip: Tensor = self.shortcut(x)
        for layer in self.residual:
            x = conv_clip(layer, x) if hasattr(layer, "kernel_size") else layer(x)
        return skip + x

    def step(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Map the next frame ``(B, in_dim, H, W)``, which is used up, to ``(B, out_dim, H, W)``."""
        first_norm, _, first, second_norm, _, _, second = self.residual
        work, out = cache.work, x
        if not isinstance(self.shortcut, nn.Identity):
            out = conv_frames(self.shortcut, [x], work.slab)
        before = activation(first_norm, x, work.rows)  # type: ignore[arg-type]
        x = conv_frame(first, x, cache, Output(room=work.beside(x)), before)
        before = activation(second_norm, x, work.rows)  # type: ignore[arg-type]
        return conv_frame(second, x, cache, Output(onto=out), before)


class AttentionBlock(nn.Module):
    """Single-head self-attention inside every frame."""

    def __init__(self, dim: int, ops: Ops, factory: dict[str, object]) -> None:
        """``dim`` channels, one head of that width."""
        super().__init__()
        self.norm = ChannelNorm(dim, 2, factory=factory)
        self.to_qkv = ops.Conv2d(dim, dim * 3, 1, **factory)
        self.proj = ops.Conv2d(dim, dim, 1, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out; frames do not see each other."""
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(self._frames(frames), "(b t) c h w -> b c t h w", b=x.shape[0])

    def step(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Same shape in and out; a frame needs no past."""
        return self._frames(x)

    def _frames(self, x: Tensor) -> Tensor:
        qkv = self.to_qkv(self.norm(x))
        # Contiguous, because fused attention kernels want the channels side by side.
        q, k, v = rearrange(qkv, "f (three c) h w -> three f (h w) 1 c", three=3).contiguous()
        out = rearrange(sdpa(q, k, v), "f (h w) c -> f c h w", h=x.shape[2])
        update: Tensor = self.proj(out)
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

    def forward(self, x: Tensor) -> Tensor:
        """Space first, then time. The first frame of a clip passes the time step untouched."""
        x = _per_frame(self.resample, x)
        if not self.temporal or x.shape[2] < self.time_conv.kernel_size[0]:
            return x[:, :, :1] if self.temporal else x
        return torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)

    def step(self, x: Tensor, cache: CausalCache) -> list[Tensor]:
        """The frame that is complete with this one, if any: in time every second one is."""
        x = self._halved(x)
        if not self.temporal:
            return [x]
        past = cache.past(self.time_conv)
        if past is None:
            cache.keep(self.time_conv, x, 1)
            return [x.clone()]  # the next layer may use it up
        between = cache.take(self)
        if between is None:
            cache.set_aside(self, x)
            return []
        complete = conv_frames(self.time_conv, [past[0].to(x.device), between, x], cache.work.slab)
        cache.keep(self.time_conv, x, 1)
        return [complete]

    def _halved(self, x: Tensor) -> Tensor:
        # Padding 2 on all sides and dropping the first row and column is padding 1 at the end
        # alone, without a padded copy of the frame.
        conv = self.resample[1]
        weight, bias = current(conv, "weight", x), current(conv, "bias", x)
        return conv2d(x, weight, bias, stride=2, padding=2)[:, :, 1:, 1:]


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

    def forward(self, x: Tensor) -> Tensor:
        """Time first, then space. The clip's first frame takes no part in the time step at all."""
        if self.temporal and x.shape[2] > 1:
            pairs = conv_clip(self.time_conv, x[:, :, 1:])
            later = rearrange(pairs, "b (two c) t h w -> b c (t two) h w", two=2)
            x = torch.cat([x[:, :, :1], later], dim=2)
        return _per_frame(self.resample, x)

    def in_time(self, x: Tensor, cache: CausalCache) -> list[Tensor]:
        """The clip's first frame, later two for one: time is doubled; in memory of their own."""
        if cache.past(self.time_conv) is None:
            cache.begin(self.time_conv)
            return [x.clone()]
        both = conv_frame(self.time_conv, x, cache, Output(room=cache.work.beside(x)))
        return [half.clone() for half in both.chunk(2, dim=1)]  # the first may go before the second

    def step(self, x: Tensor, cache: CausalCache) -> Tensor:
        """One frame ``(B, dim, H, W)`` to ``(B, dim // 2, 2H, 2W)``: space alone."""
        conv: Any = self.resample[1]
        bias = None if conv.bias is None else current(conv, "bias", x)
        given = Filter(current(conv, "weight", x).unsqueeze(2), bias, conv.padding)
        height, width = 2 * x.shape[2], 2 * x.shape[3]
        runs = slabs(height, 2 * x[:, :, 0].nbytes, x.device)

        def double(doubled: Tensor, start: int, stop: int, _: int) -> None:
            for skip in (0, 1):
                rows, first = doubled[:, :, skip::2], (start + skip) // 2
                pairs = rearrange(rows, "b c h (w two) -> b c h w two", two=2)
                pairs.copy_(x[:, :, first : first + rows.shape[2]].unsqueeze(-1))

        output = Output(room=cache.work.beside(x))
        return conv_rows(given, double, x, width, runs, cache.work.slab, output)


class Head(nn.ModuleList):
    """Norm, activation and the last convolution."""

    def __init__(self, dim: int, out_dim: int, ops: Ops, factory: dict[str, object]) -> None:
        """Maps ``dim`` channels to ``out_dim``."""
        conv = ops.Conv3d(dim, out_dim, 3, padding=(0, 1, 1), **factory)
        super().__init__([ChannelNorm(dim, 3, factory=factory), nn.SiLU(), conv])

    def forward(self, x: Tensor) -> Tensor:
        """Map a clip ``(B, dim, T, H, W)`` to ``(B, out_dim, T, H, W)``."""
        norm, activation, conv = self
        return conv_clip(conv, activation(norm(x)))

    def step(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Map the next frame ``(B, dim, H, W)`` to ``(B, out_dim, H, W)``.

        What a frame adds to its own output and to the next two is computed at once, and those sums are
        kept in float32 instead of two frames of ``dim`` channels.
        """
        norm, _, conv = self
        before = activation(norm, x, cache.work.rows)  # type: ignore[arg-type]
        sums = conv_ahead(conv, x, cache.work.slab, before)
        for index, waiting in enumerate(cache.past(conv) or ()):
            sums[index] += waiting.to(x.device)
        cache.replace(conv, sums[1:])
        return sums[0].to(x.dtype)
