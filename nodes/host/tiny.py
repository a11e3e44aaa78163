"""Tiny decoders inside ComfyUI: as a VAE that only decodes, and as frames in the previews of a run."""

from __future__ import annotations

import logging
from typing import Any

import comfy.latent_formats
import comfy.model_management as mm
import latent_preview
import torch
from comfy.cli_args import LatentPreviewMethod, args
from PIL import Image
from torch import Tensor, nn

from ...wan.checkpoint import load_decoder, place
from ...wan.config import VAEConfig
from ...wan.vae import COUNTED, TinyVAE, WanVAE, tiny_bytes
from ...wan.video import to_uint8
from . import files
from .quant import META
from .vae import HostVAE

log = logging.getLogger(__name__)


class HostTinyVAE(HostVAE):
    """A tiny decoder where ComfyUI wants a VAE; encoding is refused."""

    def __init__(
        self, config: VAEConfig, weights: dict[str, Tensor], *, normalized: bool, name: str
    ) -> None:
        """``weights`` have the published keys; ``normalized`` says on which latents they were trained."""
        self._normalized, self._name = normalized, name
        super().__init__(config, weights)

    def _network(self) -> nn.Module:
        return TinyVAE(self.config, normalized=self._normalized, device=META)

    def _decode_bytes(self, shape: Any, dtype: torch.dtype) -> float:
        return tiny_bytes(shape[-2], shape[-1], dtype) / COUNTED

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Raise ValueError: what is encoded is seen by every step, which an approximation would spoil."""
        raise ValueError(
            f"{self._name} is a tiny decoder and cannot encode; load wan_2.1_vae to encode images"
        )


class TinyPreviewer:
    """Frames of a running clip, in the place of a previewer of ComfyUI's.

    ComfyUI's own hands the sampler's normalised latents to a decoder of raw ones, which washes colours
    out, and has its model management make room for it in the middle of a run. A tiny decoder needs
    less than a step of the experts, whose memory is free at that moment.
    """

    def __init__(self, decoder: WanVAE | TinyVAE, latent_format: Any, device: torch.device) -> None:
        """``latent_format`` is that of the latents that come."""
        self._dtype = mm.vae_dtype(device, [torch.bfloat16, torch.float32])
        place(decoder, device, self._dtype)
        self._decoder: WanVAE | TinyVAE | None = decoder
        self._format, self._device = latent_format, device

    def decode_latent_to_preview_image(
        self, preview_format: str, x0: Tensor
    ) -> tuple[str, Image.Image, int]:
        """The first latent frame of ``x0`` (B, 16, T, h, w), normalised, as ComfyUI's preview."""
        if self._decoder is not None:
            raw = self._format.process_out(x0[:1, :, :1].to(self._device, torch.float32))
            try:
                (video,) = self._decoder.decode_stream(raw.to(self._dtype))
                image = Image.fromarray(to_uint8(video[0].nan_to_num())[0].cpu().numpy())
                return "JPEG", image, latent_preview.MAX_PREVIEW_RESOLUTION
            except torch.cuda.OutOfMemoryError:
                log.warning("no memory for decoded previews; showing latents as colours")
                self._decoder = None
        found: tuple[str, Image.Image, int] = _as_colours(
            self._format
        ).decode_latent_to_preview_image(preview_format, x0)
        return found


def find_previewer(device: torch.device, latent_format: Any) -> Any:
    """ComfyUI's previewer, or ours where it was told to decode and a tiny decoder of Wan2.1 is there."""
    asked = args.preview_method == LatentPreviewMethod.TAESD
    name = files.preview_decoder() if asked else None
    if name is None or not isinstance(latent_format, comfy.latent_formats.Wan21):
        return latent_preview.get_previewer(device, latent_format)
    try:
        decoder = load_decoder(files.find(files.VAE, name))
    except (ValueError, OSError) as error:
        log.warning("previews show latents as colours: %s", error)
        return _as_colours(latent_format)
    return TinyPreviewer(decoder, latent_format, device)


def _as_colours(latent_format: Any) -> Any:
    factors, bias = latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    return latent_preview.Latent2RGBPreviewer(factors, bias)
