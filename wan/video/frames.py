"""Decoded video as frames for files: 8 or 16 bits, by the official rule."""

from __future__ import annotations

import torch
from einops import rearrange
from numpy import uint8, uint16
from numpy.typing import NDArray
from torch import Tensor

Pixels = NDArray[uint8] | NDArray[uint16]

DTYPES = {8: torch.uint8, 16: torch.uint16}
"""Dtype of frames by the bits of a sample."""


def to_uint8(video: Tensor) -> Tensor:
    """Decoded video (3, n, H, W) in [-1, 1] -> frames (n, H, W, 3) uint8 on the same device.

    The official rule: clamp, scale to 0..255, drop the fraction (no rounding).

    Raises:
        FloatingPointError: the video holds NaN or infinity, which would be written as black.
    """
    return _to_frames(video, 8)


def to_uint16(video: Tensor) -> Tensor:
    """The same rule on 0..65535: frames (n, H, W, 3) uint16, for files of more than 8 bits."""
    return _to_frames(video, 16)


def to_frames(video: Tensor, bits: int) -> Tensor:
    """:func:`to_uint8` or :func:`to_uint16`, by the ``bits`` of a writer."""
    return {8: to_uint8, 16: to_uint16}[bits](video)


def _to_frames(video: Tensor, bits: int) -> Tensor:
    video = video.float()
    if not bool(torch.isfinite(video).all()):
        raise FloatingPointError(
            "the decoded frames hold NaN or infinity; decode in a wider dtype or check the latents"
        )
    scaled = (video.clamp(-1, 1) + 1) / 2 * (2**bits - 1)
    frames: Tensor = rearrange(scaled.to(DTYPES[bits]), "c n h w -> n h w c").contiguous()
    return frames


def check_latents(latents: Tensor) -> None:
    """Raise unless ``latents`` (B, C, T, h, w) can become frames.

    Raises:
        ValueError: no latent frame or no pixel.
        FloatingPointError: NaN or infinity; the sentence names the first such latent frame.
    """
    if not latents.numel():
        raise ValueError(
            f"latents of shape {tuple(latents.shape)} hold no frame; use at least one latent frame"
        )
    good = torch.isfinite(latents).all(dim=0).all(dim=0).flatten(1).all(dim=1)
    if not bool(good.all()):
        first, count = int(good.logical_not().nonzero()[0]), len(good)
        raise FloatingPointError(
            f"latent frame {first + 1} of {count} holds NaN or infinity and would become black; "
            "sample again, in a wider dtype or without the last change to the model"
        )


def check_frames(frames: Tensor, bits: int = 8) -> None:
    """Raise ValueError unless ``frames`` are (n, H, W, 3) in the dtype of ``bits``."""
    dtype = DTYPES[bits]
    if frames.dtype != dtype or frames.ndim != 4 or frames.shape[-1] != 3:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{frames.dtype} of shape {tuple(frames.shape)} is not a run of frames; "
            f"use {kind} (n, height, width, 3), as `to_{kind}` gives"
        )


def pixels(frames: Tensor) -> Pixels:
    """The same numbers for the encoders."""
    array: Pixels = frames.cpu().contiguous().numpy()
    return array
