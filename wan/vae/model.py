"""The Wan2.1 causal video VAE (16 latent channels, 4x8x8): whole clips and exact streams.

Official layout (``wan/modules/vae2_1.py``); attribute names equal the checkpoint keys. "Raw" latents
are what the encoder gives; the transformer works on normalised ones, see :func:`normalize`.

Shape legend: video ``(B, 3, F, H, W)`` in [-1, 1]; latents ``(B, 16, T, H/8, W/8)``, F = 4(T-1)+1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..config import VAEConfig
from ..ops import Ops, TorchOps
from ..shapes import TEMPORAL_STRIDE, check_size, latent_frames
from .blocks import AttentionBlock, ChannelNorm, Downsample, ResidualBlock, Upsample
from .causal import CausalCache, causal_conv

RGB = 3


def normalize(raw: Tensor, config: VAEConfig) -> Tensor:
    """Raw latents ``(B, C, T, h, w)`` to the transformer's space: zero mean, unit deviation."""
    mean, std = _statistics(raw, config)
    return (raw - mean) / std


def denormalize(latents: Tensor, config: VAEConfig) -> Tensor:
    """Inverse of :func:`normalize`."""
    mean, std = _statistics(latents, config)
    return latents * std + mean


def _statistics(x: Tensor, config: VAEConfig) -> tuple[Tensor, Tensor]:
    if x.ndim != 5 or x.shape[1] != config.z_dim:
        raise ValueError(
            f"latents of shape {tuple(x.shape)} do not fit this VAE; "
            f"it needs (batch, {config.z_dim}, frames, height / 8, width / 8)"
        )
    shape = (1, -1, 1, 1, 1)
    return (
        torch.tensor(config.latent_mean, dtype=x.dtype, device=x.device).view(shape),
        torch.tensor(config.latent_std, dtype=x.dtype, device=x.device).view(shape),
    )


def _run(layers: Iterable[nn.Module], x: Tensor, cache: CausalCache | None) -> Tensor:
    """Send ``x`` through blocks, causal convolutions and plain layers alike."""
    for layer in layers:
        if hasattr(layer, "kernel_size"):
            x = causal_conv(layer, x, cache)
        elif isinstance(layer, (ChannelNorm, nn.SiLU)):
            x = layer(x)
        else:
            x = layer(x, cache)
    return x


def _middle(dim: int, ops: Ops, factory: dict[str, object]) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResidualBlock(dim, dim, ops, factory),
            AttentionBlock(dim, ops, factory),
            ResidualBlock(dim, dim, ops, factory),
        ]
    )


def _head(dim: int, out_dim: int, ops: Ops, factory: dict[str, object]) -> nn.ModuleList:
    conv = ops.Conv3d(dim, out_dim, 3, padding=(0, 1, 1), **factory)
    return nn.ModuleList([ChannelNorm(dim, 3, factory=factory), nn.SiLU(), conv])


class Encoder(nn.Module):
    """Video ``(B, 3, F, H, W)`` to features ``(B, 2 * z_dim, T, H/8, W/8)``."""

    def __init__(self, config: VAEConfig, ops: Ops, factory: dict[str, object]) -> None:
        """Build the stages of ``config``."""
        super().__init__()
        dims = [config.dim * m for m in (1, *config.dim_mult)]
        self.conv1 = ops.Conv3d(RGB, dims[0], 3, padding=(0, 1, 1), **factory)
        layers: list[nn.Module] = []
        for stage, (dim, out_dim) in enumerate(pairwise(dims)):
            in_dims = [dim] + [out_dim] * (config.num_res_blocks - 1)
            layers.extend(ResidualBlock(in_dim, out_dim, ops, factory) for in_dim in in_dims)
            if stage < len(config.temporal_downsample):
                temporal = config.temporal_downsample[stage]
                layers.append(Downsample(out_dim, temporal, ops, factory))
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(dims[-1], ops, factory)
        self.head = _head(dims[-1], 2 * config.z_dim, ops, factory)

    def forward(self, x: Tensor, cache: CausalCache | None) -> Tensor:
        """Encode one chunk (1 frame, later 4), or the whole clip when ``cache`` is None."""
        return _run([self.conv1, *self.downsamples, *self.middle, *self.head], x, cache)


class Decoder(nn.Module):
    """Latents ``(B, z_dim, T, h, w)`` to video ``(B, 3, F, 8h, 8w)``, not clamped."""

    def __init__(self, config: VAEConfig, ops: Ops, factory: dict[str, object]) -> None:
        """Build the stages of ``config``; every decoder stage has one residual block more."""
        super().__init__()
        mult = config.dim_mult[::-1]
        dims = [config.dim * m for m in (mult[0], *mult)]
        temporal_upsample = config.temporal_downsample[::-1]
        self.conv1 = ops.Conv3d(config.z_dim, dims[0], 3, padding=(0, 1, 1), **factory)
        self.middle = _middle(dims[0], ops, factory)
        layers: list[nn.Module] = []
        for stage, (dim, out_dim) in enumerate(pairwise(dims)):
            # An upsampling stage ends by halving its channels, so the next one starts narrower.
            start = dim if stage == 0 else dim // 2
            in_dims = [start] + [out_dim] * config.num_res_blocks
            layers.extend(ResidualBlock(in_dim, out_dim, ops, factory) for in_dim in in_dims)
            if stage < len(temporal_upsample):
                layers.append(Upsample(out_dim, temporal_upsample[stage], ops, factory))
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(dims[-1], RGB, ops, factory)

    def forward(self, z: Tensor, cache: CausalCache | None) -> Tensor:
        """Decode one chunk (usually one latent frame), or the whole clip when ``cache`` is None."""
        return _run([self.conv1, *self.middle, *self.upsamples, *self.head], z, cache)


class WanVAE(nn.Module):
    """Encoder and decoder with their 1x1x1 latent convolutions; raw latents in and out."""

    def __init__(
        self,
        config: VAEConfig,
        *,
        ops: Ops = TorchOps,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the modules without meaningful weights; load an official state dict into them."""
        super().__init__()
        factory: dict[str, object] = {"device": device, "dtype": dtype}
        self.config = config
        self.encoder = Encoder(config, ops, factory)
        self.conv1 = ops.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1, **factory)
        self.conv2 = ops.Conv3d(config.z_dim, config.z_dim, 1, **factory)
        self.decoder = Decoder(config, ops, factory)

    def encode_whole(self, video: Tensor) -> Tensor:
        """Mean latents of a whole clip in one pass: differentiable, memory grows with length."""
        return self._mean(self.encoder(video, None))

    def decode_whole(self, latents: Tensor) -> Tensor:
        """Video of a whole clip in one pass: differentiable, not clamped, memory grows with length."""
        video: Tensor = self.decoder(self.conv2(latents), None)
        return video

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """Encode chunks of one clip: the first of 1 frame, each later one of 4.

        Yields:
            One raw latent frame ``(B, 16, 1, H/8, W/8)`` per chunk.
        """
        cache = CausalCache()
        for index, chunk in enumerate(chunks):
            expected = TEMPORAL_STRIDE if index else 1
            if chunk.shape[2] != expected:
                raise ValueError(
                    f"chunk {index} has {chunk.shape[2]} frames, not {expected}; "
                    f"feed 1 frame first and {TEMPORAL_STRIDE} at a time after it"
                )
            yield self._mean(self.encoder(chunk, cache))

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode raw latents one latent frame at a time; memory does not grow with length.

        Yields:
            ``(B, 3, 1, H, W)`` first, then ``(B, 3, 4, H, W)`` per latent frame, in [-1, 1].
        """
        self._check_latents(latents)
        cache = CausalCache()
        for index in range(latents.shape[2]):
            frame = self.conv2(latents[:, :, index : index + 1])
            yield self.decoder(frame, cache).clamp_(-1, 1)

    def encode(self, video: Tensor) -> Tensor:
        """Raw mean latents ``(B, 16, T, H/8, W/8)`` of a clip of 4k+1 frames, streamed."""
        count = latent_frames(video.shape[2])
        check_size(video.shape[3], video.shape[4])
        sizes = [1] + [TEMPORAL_STRIDE] * (count - 1)
        return torch.cat(list(self.encode_stream(torch.split(video, sizes, dim=2))), dim=2)

    def decode(self, latents: Tensor) -> Tensor:
        """Video ``(B, 3, F, H, W)`` in [-1, 1] of raw latents, streamed."""
        return torch.cat(list(self.decode_stream(latents)), dim=2)

    def _mean(self, features: Tensor) -> Tensor:
        features = self.conv1(features)
        return features[:, : self.config.z_dim]

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 5 or latents.shape[1] != self.config.z_dim or latents.shape[2] < 1:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} do not fit this VAE; "
                f"it needs (batch, {self.config.z_dim}, frames, height / 8, width / 8)"
            )
