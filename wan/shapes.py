"""The only frame, latent and token arithmetic of the project.

Symbols: ``num_frames`` counts pixel frames (4k+1), ``latent_frames`` counts latent frames (k+1),
``height``/``width`` are pixels, ``latent_height``/``latent_width`` are latent cells.
"""

from __future__ import annotations

from typing import NamedTuple

TEMPORAL_STRIDE = 4
SPATIAL_STRIDE = 8
PATCH = 2
SIZE_MULTIPLE = SPATIAL_STRIDE * PATCH


class LatentShape(NamedTuple):
    """Shape of one clip's latents without the batch axis: ``(channels, frames, height, width)``."""

    channels: int
    frames: int
    height: int
    width: int


class TokenGrid(NamedTuple):
    """Number of transformer tokens along (time, height, width); width is fastest."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Sequence length seen by the transformer."""
        return self.frames * self.height * self.width


def latent_frames(num_frames: int) -> int:
    """Latent frames of a clip of ``num_frames`` pixel frames; raises ValueError unless 4k+1."""
    if num_frames < 1 or (num_frames - 1) % TEMPORAL_STRIDE:
        low = max(1, (num_frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)
        ways = f"{low} or {low + TEMPORAL_STRIDE}" if num_frames > 1 else "1 or 5"
        raise ValueError(f"num_frames={num_frames} is not 4k+1; use {ways}")
    return (num_frames - 1) // TEMPORAL_STRIDE + 1


def pixel_frames(frames: int) -> int:
    """Pixel frames decoded from ``frames`` latent frames: 1, 5, 9, ...; 0 from none."""
    return max(0, (frames - 1) * TEMPORAL_STRIDE + 1)


def latent_frames_within(num_frames: int) -> int:
    """Latent frames of the longest 4k+1 clip in ``num_frames`` pixel frames; 0 if there are none."""
    return max(0, (num_frames - 1) // TEMPORAL_STRIDE + 1)


def pixel_size(latent_height: int, latent_width: int) -> tuple[int, int]:
    """``(height, width)`` in pixels of latents of this many cells."""
    return latent_height * SPATIAL_STRIDE, latent_width * SPATIAL_STRIDE


def check_size(height: int, width: int) -> None:
    """Raise ValueError unless both pixel sizes are positive multiples of 16 (8x VAE, 2x2 patches)."""
    for name, value in (("height", height), ("width", width)):
        if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
            low = max(SIZE_MULTIPLE, value // SIZE_MULTIPLE * SIZE_MULTIPLE)
            high = low + SIZE_MULTIPLE
            way = f"{low} or {high}" if value > SIZE_MULTIPLE else f"{SIZE_MULTIPLE} or more"
            raise ValueError(
                f"{name}={value} is not a positive multiple of {SIZE_MULTIPLE}; use {way}"
            )


def latent_shape(num_frames: int, height: int, width: int, *, channels: int) -> LatentShape:
    """Latent shape of a clip given in pixels; raises ValueError for sizes the model cannot take."""
    check_size(height, width)
    return LatentShape(
        channels, latent_frames(num_frames), height // SPATIAL_STRIDE, width // SPATIAL_STRIDE
    )


def token_grid(frames: int, height: int, width: int) -> TokenGrid:
    """Token grid of latents of ``frames`` x ``height`` x ``width`` cells."""
    if height % PATCH or width % PATCH:
        raise ValueError(
            f"latent size {height}x{width} is not a multiple of the {PATCH}x{PATCH} patch; "
            f"use pixel sizes that are multiples of {SIZE_MULTIPLE}"
        )
    return TokenGrid(frames, height // PATCH, width // PATCH)
