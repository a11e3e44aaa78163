"""The Wan2.1 causal video VAE (16 latent channels, 4x8x8): whole clips and exact streams.

Official layout (``wan/modules/vae2_1.py``); attribute names equal the checkpoint keys. "Raw" latents
are what the encoder gives; the transformer works on normalised ones, see :func:`normalize`.

Shape legend: video ``(B, 3, F, H, W)`` in [-1, 1]; latents ``(B, 16, T, H/8, W/8)``, F = 4(T-1)+1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..config import VAEConfig
from ..ops import Ops, TorchOps
from ..shapes import TEMPORAL_STRIDE, check_size, latent_frames
from .blocks import AttentionBlock, Downsample, Head, ResidualBlock, Upsample
from .causal import conv_clip, conv_frame, conv_frames
from .encoding import EncoderRun
from .strips import WHOLE, DecodePlan, DecoderRun, run_strip, split_rows

RGB = 3
_CPU = torch.device("cpu")


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


def _middle(dim: int, ops: Ops, factory: dict[str, object]) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResidualBlock(dim, dim, ops, factory),
            AttentionBlock(dim, ops, factory),
            ResidualBlock(dim, dim, ops, factory),
        ]
    )


def _laid_out(frame: Tensor, *, positions: int, channels: int) -> Tensor:
    """A frame in the memory order that suits layers of so many positions and channels.

    Where there are many positions, channels side by side: norms and kernels read them in order. Where
    there are fewer, plain: the weights, which outweigh the frame, need no copy in a new order for it.
    """
    last = positions >= 2 * channels
    return frame.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


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
        self.head = Head(dims[-1], 2 * config.z_dim, ops, factory)

    def forward(self, x: Tensor) -> Tensor:
        """Encode a whole clip."""
        x = conv_clip(self.conv1, x)
        for layer in (*self.downsamples, *self.middle, self.head):
            x = layer(x)
        return x

    def step(self, frames: list[Tensor], repeated: bool, run: EncoderRun) -> Tensor:
        """Features ``(B, 2 * z_dim, H/8, W/8)`` of the next chunk: 1 frame, later 4.

        ``frames`` are used up. ``repeated`` says that they equal those of the chunk before.
        """
        stages = self.stages()
        # A copy: frames may be windows of images, in a memory order that convolutions do not keep.
        frames = [frame.clone(memory_format=torch.channels_last) for frame in frames]
        for index, layers in enumerate(stages):
            _, channels, height, width = frames[0].shape
            frames = [_laid_out(f, positions=height * width, channels=channels) for f in frames]
            frames, repeated = run.stage(index, layers, frames, repeated)
        (features,) = frames
        return features

    def stages(self) -> list[list[nn.Module]]:
        """The layers, a new list after every halving."""
        stages: list[list[nn.Module]] = [[self.conv1]]
        for layer in self.downsamples:
            stages[-1].append(layer)
            if isinstance(layer, Downsample):
                stages.append([])
        stages[-1] += [*self.middle, self.head]
        return stages


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
        self.head = Head(dims[-1], RGB, ops, factory)

    def forward(self, z: Tensor) -> Tensor:
        """Decode a whole clip."""
        x = conv_clip(self.conv1, z)
        for layer in (*self.middle, *self.upsamples, self.head):
            x = layer(x)
        return x

    def step(self, z: Tensor, run: DecoderRun) -> Iterator[Tensor]:
        """Decode the next latent frame ``(B, z_dim, h, w)``.

        Yields:
            Its frames ``(B, 3, 8h, 8w)``: 1 from a clip's first latent frame, then 4. Each is made
            when it is asked for, so memory holds the activations of a single one.
        """
        x = _laid_out(z, positions=z[0, 0].numel(), channels=self.conv1.out_channels)
        x = conv_frame(self.conv1, x, run.lower)
        yield from self._climb([x], self.segments(), run)

    def segments(self) -> list[list[Any]]:
        """The layers after the first; each segment but the first starts where time is doubled."""
        segments: list[list[Any]] = [[*self.middle]]
        for layer in self.upsamples:
            if isinstance(layer, Upsample) and layer.temporal:
                segments.append([])
            segments[-1].append(layer)
        segments[-1].append(self.head)
        return segments

    def _climb(
        self, frames: list[Tensor], segments: list[list[Any]], run: DecoderRun
    ) -> Iterator[Tensor]:
        """Depth first in time: a frame goes all the way before the next one starts."""
        layers, *above = segments
        while frames:
            x = frames.pop(0)
            if isinstance(layers[0], Upsample):  # its layers work on four times the positions
                x = _laid_out(x, positions=4 * x[0, 0].numel(), channels=x.shape[1])
            if not above:
                yield _in_strips(layers, x, run)
                continue
            for layer in layers:
                x = layer.step(x, run.lower)
            doubled = above[0][0].in_time(x, run.lower)
            del x
            yield from self._climb(doubled, above, run)


def _in_strips(layers: list[Any], x: Tensor, run: DecoderRun) -> Tensor:
    rows = split_rows(x.shape[2], len(run.strips))
    strips = zip(rows, run.strips, strict=True)
    return torch.cat([run_strip(layers, x, strip, cache) for strip, cache in strips], dim=2)


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
        return self._mean(self.encoder(video))

    def decode_whole(self, latents: Tensor) -> Tensor:
        """Video of a whole clip in one pass: differentiable, not clamped, memory grows with length."""
        video: Tensor = self.decoder(self.conv2(latents))
        return video

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor], *, offload: bool = False) -> Iterator[Tensor]:
        """Encode chunks of one clip: the first of 1 frame, each later one of 4.

        Chunks that repeat cost less and less, with the same numbers; see ``encoding.py``.

        Args:
            chunks: ``(B, 3, 1, H, W)``, then ``(B, 3, 4, H, W)``, in [-1, 1].
            offload: keep the past frames of the layers in the host's memory.

        Yields:
            One raw latent frame ``(B, 16, 1, H/8, W/8)`` per chunk.
        """
        run, before = EncoderRun(_CPU if offload else None), None
        for index, chunk in enumerate(chunks):
            expected = TEMPORAL_STRIDE if index else 1
            if chunk.shape[2] != expected:
                raise ValueError(
                    f"chunk {index} has {chunk.shape[2]} frames, not {expected}; "
                    f"feed 1 frame first and {TEMPORAL_STRIDE} at a time after it"
                )
            repeated = before is not None and torch.equal(before, chunk)
            features = self.encoder.step([*chunk.unbind(2)], repeated, run)
            yield self._mean(features.unsqueeze(2))
            before = chunk

    @torch.no_grad()
    def decode_stream(self, latents: Tensor, plan: DecodePlan = WHOLE) -> Iterator[Tensor]:
        """Decode raw latents one latent frame at a time; memory does not grow with length.

        Args:
            latents: ``(B, 16, T, h, w)``.
            plan: how it is done; the numbers are the same up to rounding.

        Yields:
            ``(B, 3, 1, H, W)`` first, then ``(B, 3, 4, H, W)`` per latent frame, in [-1, 1].
        """
        self._check_latents(latents)
        run = DecoderRun(plan)
        for latent in latents.unbind(2):
            z = conv_frames(self.conv2, [latent.contiguous()], run.lower.work.slab)
            yield torch.stack([*self.decoder.step(z, run)], dim=2).clamp_(-1, 1)

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
