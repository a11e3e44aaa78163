"""Tiny decoders of Wan2.1 latents (the TAEHV family): quick drafts and previews, as exact streams.

Another network than the VAE's decoder, trained to show nearly the same, for a small part of its work.
Two published files share one layout but not one latent space: ``taew2_1`` was trained on normalised
latents, ``lighttaew2_1`` on raw ones. Source: github.com/madebyollin/taehv.

Shape legend: latents ``(B, 16, T, h, w)``; a frame ``(B, C, H, W)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..config import VAEConfig
from ..ops import Ops, TorchOps
from .causal import CausalCache
from .model import RGB, normalize

WIDTHS = (256, 128, 64, 64)
GROWTH = (1, 2, 2)
"""Frames that one becomes, where each of the first widths ends."""
BLOCKS = 3
LEAD = 3
"""Frames that a clip's first latent frame makes before its only one; they are not shown."""
LIMIT = 3.0
"""Latents bend softly towards this value on either side."""
ELEMENTS = 18_600
"""Peak number of activations per latent position, finished frames included; measured: 18,512."""


class MemoryBlock(nn.Module):
    """A residual block that also sees its input of the frame before."""

    def __init__(self, dim: int, ops: Ops, factory: dict[str, object]) -> None:
        """``dim`` channels in and out; the indices in ``conv`` are those of the published keys."""
        super().__init__()
        self.conv = nn.Sequential(
            ops.Conv2d(2 * dim, dim, 3, padding=1, **factory),
            nn.ReLU(inplace=True),
            ops.Conv2d(dim, dim, 3, padding=1, **factory),
            nn.ReLU(inplace=True),
            ops.Conv2d(dim, dim, 3, padding=1, **factory),
        )

    def step(self, x: Tensor, cache: CausalCache) -> Tensor:
        """Map the next frame ``(B, dim, H, W)`` to one of the same shape."""
        (before,) = cache.past(self) or (torch.zeros_like(x),)
        joined = torch.cat([x, before], dim=1)
        cache.keep(self, x, 1)
        out: Tensor = self.conv(joined)
        return out.add_(x).relu_()


class Grow(nn.Module):
    """One frame to the next ``count`` ones."""

    def __init__(self, dim: int, count: int, ops: Ops, factory: dict[str, object]) -> None:
        """``dim`` channels in and out."""
        super().__init__()
        self.conv = ops.Conv2d(dim, dim * count, 1, bias=False, **factory)
        self.count = count

    def forward(self, x: Tensor) -> list[Tensor]:
        """``count`` frames of the shape of ``x``, in order."""
        out: Tensor = self.conv(x)
        return list(out.chunk(self.count, dim=1))


class TinyVAE(nn.Module):
    """The decoder of one file. It stands in for :class:`.WanVAE` where only decoding is asked for."""

    def __init__(
        self,
        config: VAEConfig,
        *,
        normalized: bool,
        ops: Ops = TorchOps,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the modules without meaningful weights; load the ``decoder.*`` tensors into them.

        Args:
            config: of the VAE whose latents are decoded; the widths are not read.
            normalized: whether the file was trained on normalised latents rather than raw ones.
            ops: factory of the convolutions.
            device: of the weights.
            dtype: of the weights.
        """
        super().__init__()
        factory: dict[str, object] = {"device": device, "dtype": dtype}
        self.config, self.normalized = config, normalized
        layers: list[nn.Module] = [
            nn.Identity(),  # the published place of the soft limit
            ops.Conv2d(config.z_dim, WIDTHS[0], 3, padding=1, **factory),
            nn.ReLU(inplace=True),
        ]
        for dim, out_dim, count in zip(WIDTHS, WIDTHS[1:], GROWTH, strict=False):
            layers += [MemoryBlock(dim, ops, factory) for _ in range(BLOCKS)]
            layers.append(nn.Identity())  # the published place of the enlargement
            layers.append(Grow(dim, count, ops, factory))
            layers.append(ops.Conv2d(dim, out_dim, 3, padding=1, bias=False, **factory))
        layers += [nn.ReLU(inplace=True), ops.Conv2d(WIDTHS[-1], RGB, 3, padding=1, **factory)]
        self.decoder = nn.ModuleList(layers)

    @torch.no_grad()
    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode raw latents one latent frame at a time; memory does not grow with length.

        Args:
            latents: ``(B, 16, T, h, w)``, raw as everywhere.

        Yields:
            ``(B, 3, 1, 8h, 8w)`` first, then ``(B, 3, 4, 8h, 8w)`` per latent frame, in [-1, 1].

        Raises:
            ValueError: latents of another shape.
        """
        # Asked of both kinds, because it also checks the shape.
        known = normalize(latents, self.config)
        *below, conv, relu, last = self.decoder
        cache, hidden = CausalCache(), LEAD
        for latent in (known if self.normalized else latents).unbind(2):
            x = torch.tanh(latent / LIMIT).mul_(LIMIT)
            shown = islice(_climb(x, below, cache), hidden, None)
            video = torch.stack([last(relu(conv(frame))) for frame in shown], dim=2)
            yield video.mul_(2).sub_(1).clamp_(-1, 1)
            del video
            hidden = 0

    def decode(self, latents: Tensor) -> Tensor:
        """Video ``(B, 3, F, H, W)`` in [-1, 1] of raw latents, streamed."""
        return torch.cat(list(self.decode_stream(latents)), dim=2)


def tiny_bytes(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Peak bytes while one clip of ``rows`` x ``columns`` latents is decoded, beside the weights."""
    return ELEMENTS * rows * columns * dtype.itemsize


def _climb(x: Tensor, layers: Sequence[Any], cache: CausalCache) -> Iterator[Tensor]:
    """Depth first in time: a frame goes all the way before the next one starts."""
    for index, layer in enumerate(layers):
        if isinstance(layer, Grow):
            # As published the frame is enlarged first. A 1x1 convolution does not mind, and is
            # a quarter of the work before.
            grown = layer(x)
            del x
            for frame in grown:
                yield from _climb(_enlarged(frame), layers[index + 1 :], cache)
            return
        x = layer.step(x, cache) if isinstance(layer, MemoryBlock) else layer(x)
    yield x


def _enlarged(frame: Tensor) -> Tensor:
    return interpolate(frame, scale_factor=2.0)
