"""Latents to frames for files, from any VAE; sound and saved frames in ComfyUI's own types."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import InputImpl, Types
from einops import rearrange
from torch import Tensor

from ...wan.shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE
from ...wan.video import Audio, Sheet, check_latents, read_png, save_png, to_frames
from .vae import HostVAE, check_vae, decode_images


def check_clip(vae: Any, latents: Tensor) -> None:
    """Raise unless ``latents`` are one clip that ``vae`` can decode.

    Raises:
        ValueError: another kind of VAE, no frame, or several clips.
        FloatingPointError: NaN or infinity, by the first such latent frame.
    """
    check_vae(vae, latents)
    check_latents(latents)
    if latents.shape[0] != 1:
        raise ValueError(
            f"the latents hold {latents.shape[0]} clips, one file holds one; choose a clip with "
            "Latent From Batch, or use Decode Wan Latents"
        )


def frame_size(vae: Any, latents: Tensor) -> tuple[int, int]:
    """Height and width of the frames that ``vae`` will make."""
    ratio = getattr(vae, "spacial_compression_decode", lambda: SPATIAL_STRIDE)()
    height, width = latents.shape[-2:]
    return int(height * ratio), int(width * ratio)


def decoded_frames(vae: Any, latents: Tensor, bits: int) -> Iterator[Tensor]:
    """Frames of one clip ``(1, C, T, h, w)`` from any VAE, streamed where it can.

    Yields:
        ``(frames, H, W, 3)`` uint8 or uint16 by ``bits``, by the official rule. Progress and
        interruption come per latent frame.
    """
    # No picture goes with the progress: the frontend would show it, as a video, instead of the file.
    bar = comfy.utils.ProgressBar(latents.shape[2])
    if isinstance(vae, HostVAE):
        for chunk in vae.decode_stream(latents):
            yield to_frames(chunk[0], bits)
            bar.update(1)
        return
    pixels = decode_images(vae, latents)[..., :3]
    for piece in pixels.split(TEMPORAL_STRIDE):
        mm.throw_exception_if_processing_interrupted()
        yield to_frames(rearrange(piece * 2.0 - 1.0, "f h w c -> c f h w"), bits)
        bar.update(1)


def sound(audio: Mapping[str, Any] | None) -> Audio | None:
    """ComfyUI's AUDIO for a file; ValueError for several clips or what is no sound."""
    if audio is None:
        return None
    waveform = audio["waveform"]
    if waveform.ndim != 3 or waveform.shape[0] != 1:
        raise ValueError(
            f"audio of shape {tuple(waveform.shape)} is not one clip (1, channels, samples); "
            "choose one"
        )
    return Audio(waveform=waveform[0], sample_rate=int(audio["sample_rate"]))


def preview(sheet: Sheet) -> str:
    """Name of a new contact sheet in ComfyUI's folder of temporary files."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    name = f"wan_frames_{secrets.token_hex(8)}.png"
    save_png(folder / name, sheet.image())
    return name


def video_of(folder: Path, fps: float) -> Any:
    """A VIDEO of a folder of numbered PNG files, which are read when somebody asks for them."""
    return InputImpl.VideoFromComponents(_Folder(folder, Fraction(fps).limit_denominator(1001)))


class _Folder(Types.VideoComponents):
    """Components that read their images late, and once."""

    def __init__(self, folder: Path, frame_rate: Fraction) -> None:
        super().__init__(images=None, frame_rate=frame_rate)
        del self.images
        self._folder = folder

    @cached_property
    def images(self) -> Tensor:
        """(frames, H, W, 3) float32 in [0, 1]."""
        files = sorted(self._folder.glob("*.png"))
        first = read_png(files[0])
        whole = float(torch.iinfo(first.dtype).max)
        out = torch.empty((len(files), *first.shape))
        for frame, file in zip(out, files, strict=True):
            frame.copy_(read_png(file).float() / whole)
        return out
