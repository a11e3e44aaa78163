"""Our streaming VAE as a real ComfyUI VAE: core decode and encode nodes take it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.utils
import torch
from einops import rearrange
from torch import Tensor, nn

from ...wan.config import VAEConfig
from ...wan.shapes import (
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    latent_frames_within,
    pixel_frames,
    pixel_size,
)
from ...wan.vae import (
    COUNTED,
    WanVAE,
    decode_bytes,
    decode_within,
    encode_bytes,
    strips_for,
)
from .quant import META


class HostVAE(comfy.sd.VAE):
    """Frames stream through one causal cache: memory does not grow with the clip, and tiles,
    which would break the causal cache in time, are never needed.
    """

    def __init__(self, config: VAEConfig, weights: dict[str, Tensor]) -> None:
        """``weights`` have official keys. ``comfy.sd.VAE.__init__`` is skipped: it builds its own.

        There is one copy of the weights, in the dtype of the file; layers cast them at use. So
        decoding can be in bfloat16, and encoding in float32 with nothing lost.
        """
        self.config = config
        self.device = mm.vae_device()
        self.working_dtypes = [torch.bfloat16, torch.float16, torch.float32]
        self.vae_dtype = mm.vae_dtype(self.device, self.working_dtypes)
        # Unless the user asked the host for another: what is encoded is seen by every step.
        self.encode_dtype = mm.vae_dtype(self.device, [torch.float32])
        self.output_device = mm.intermediate_device()
        self._describe()
        offload = mm.vae_offload_device()
        model = self._network().eval()
        model.load_state_dict(weights, assign=True)
        self.first_stage_model = model.requires_grad_(False).to(offload)
        # Not the paging patcher: the bare norm weights of the VAE must be on the device in full.
        self.patcher = comfy.model_patcher.ModelPatcher(
            model, load_device=self.device, offload_device=offload
        )

    def _network(self) -> nn.Module:
        return WanVAE(self.config, device=META)

    def _describe(self) -> None:
        # What other nodes and the base class read from a VAE.
        self.latent_channels = self.config.z_dim
        self.latent_dim = 3
        self.output_channels = 3
        self.pad_channel_value = None
        self.crop_input = True
        self.not_video = False
        self.disable_offload = True
        self.extra_1d_channel = None
        self.audio_sample_rate = 44100
        self.size = None
        self.upscale_ratio = (pixel_frames, SPATIAL_STRIDE, SPATIAL_STRIDE)
        self.upscale_index_formula = (TEMPORAL_STRIDE, SPATIAL_STRIDE, SPATIAL_STRIDE)
        self.downscale_ratio = (latent_frames_within, SPATIAL_STRIDE, SPATIAL_STRIDE)
        self.downscale_index_formula = (TEMPORAL_STRIDE, SPATIAL_STRIDE, SPATIAL_STRIDE)
        self.process_input = _to_signed
        self.process_output = _to_unit
        self.memory_used_decode = self._decode_bytes
        self.memory_used_encode = self._encode_bytes

    def _decode_bytes(self, shape: Any, dtype: torch.dtype) -> float:
        """What to ask the host for: the need of the fastest plan this device could hold at all."""
        reserved = self.patcher.model_size() + mm.extra_reserved_memory()
        room = COUNTED * (mm.get_total_memory(self.device) - reserved)
        size = pixel_size(*shape[-2:])
        plan = strips_for(*size, self.config, dtype, room)
        return decode_bytes(*size, self.config, dtype, plan) / COUNTED

    def _encode_bytes(self, shape: Any, dtype: torch.dtype) -> float:
        return encode_bytes(shape[-2], shape[-1], self.config, dtype) / COUNTED

    def decode_stream(self, latents: Tensor) -> Iterator[Tensor]:
        """Decode one clip as it comes, by the memory that is free: see :func:`decode_within`.

        Args:
            latents: (1, C, T, h, w) raw latents, as on the LATENT socket.

        Yields:
            (1, 3, frames, H, W) float32 in [-1, 1] on the intermediate device: 1 frame, then 4.

        Raises:
            ValueError: latents of another kind of VAE.
            torch.cuda.OutOfMemoryError: memory ran out in every plan; one sentence.
        """
        check_latents(latents, self.config.z_dim)
        needed = self._decode_bytes(latents.shape, self.vae_dtype)
        mm.load_models_gpu([self.patcher], memory_required=needed, force_full_load=True)
        free = mm.get_free_memory(self.device)
        latents = latents.to(self.device, self.vae_dtype)
        yield from decode_within(self.first_stage_model, latents, free, self._finished)

    def _finished(self, chunk: Tensor) -> Tensor:
        mm.throw_exception_if_processing_interrupted()
        return chunk.to(self.output_device).float()

    def decode(self, samples_in: Tensor, vae_options: Any = None, **_: Any) -> Tensor:
        """Raw latents ``(B, C, T, h, w)`` or ``(B, C, h, w)`` to ``(B, F, H, W, 3)`` in [0, 1]."""
        latents = samples_in.unsqueeze(2) if samples_in.ndim == 4 else samples_in
        bar = comfy.utils.ProgressBar(latents.shape[0] * latents.shape[2])
        out = None
        for index, clip in enumerate(latents.split(1)):
            start = 0
            for chunk in self.decode_stream(clip):
                frames = rearrange(self.process_output(chunk), "1 c f h w -> f h w c")
                if out is None:
                    count = pixel_frames(latents.shape[2])
                    shape = (latents.shape[0], count, *frames.shape[1:])
                    out = torch.empty(shape, device=self.output_device)
                out[index, start : start + len(frames)] = frames
                start += len(frames)
                bar.update(1)
        return out

    def decode_tiled(self, samples: Tensor, *_: Any, **__: Any) -> Tensor:
        """The same as :meth:`decode`: streaming already keeps memory flat, without tile seams."""
        return self.decode(samples)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """Frames ``(F, H, W, 3)`` or ``(B, F, H, W, 3)`` in [0, 1] to raw latents.

        The end is cut to 4k+1 frames and the borders to multiples of 8, as ComfyUI's own Wan VAE does.
        """
        colours = pixel_samples[..., :3]  # an image may bring its transparency
        pixels = colours if colours.ndim == 5 else colours.unsqueeze(0)
        clips = [self._encode_clip(clip) for clip in pixels]
        return torch.cat(clips)

    def encode_tiled(self, pixel_samples: Tensor, *_: Any, **__: Any) -> Tensor:
        """The same as :meth:`encode`."""
        return self.encode(pixel_samples)

    def _encode_clip(self, frames: Tensor) -> Tensor:
        frames = self.vae_encode_crop_pixels(frames)
        size = (*frames.shape[1:3],)
        needed = self._encode_bytes(size, self.encode_dtype)
        mm.load_models_gpu([self.patcher], memory_required=needed, force_full_load=True)
        offload = needed > mm.get_free_memory(self.device)
        count = latent_frames_within(len(frames))
        clip = rearrange(frames[: pixel_frames(count)], "f h w c -> 1 c f h w")
        sizes = [1] + [TEMPORAL_STRIDE] * (count - 1)
        latents = []
        chunks = self._prepare(clip, sizes)
        for latent in self.first_stage_model.encode_stream(chunks, offload=offload):
            mm.throw_exception_if_processing_interrupted()
            latents.append(latent.to(self.output_device).float())
        return torch.cat(latents, dim=2)

    def _prepare(self, clip: Tensor, sizes: list[int]) -> Iterator[Tensor]:
        for chunk in torch.split(clip, sizes, dim=2):
            yield self.process_input(chunk).to(self.device, self.encode_dtype)


def check_latents(latents: Tensor, channels: int) -> None:
    """Raise ValueError unless a VAE of ``channels`` latent channels can decode these."""
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise ValueError(
            f"latents of shape {tuple(latents.shape)} do not fit this VAE, which has {channels} "
            "channels; load the VAE of the model that made them (Wan2.2 14B: wan_2.1_vae)"
        )


def decode_images(vae: Any, latents: Tensor) -> Tensor:
    """Frames ``(B * F, H, W, 3)`` in [0, 1] of any VAE; clips of a batch follow each other."""
    check_vae(vae, latents)
    images = vae.decode(latents)
    return images.reshape(-1, *images.shape[-3:])


def check_vae(vae: Any, latents: Tensor) -> None:
    """:func:`check_latents` for any VAE, as far as it says what it needs."""
    check_latents(latents, getattr(vae, "latent_channels", latents.shape[1]))


def _to_signed(image: Tensor) -> Tensor:
    return image * 2.0 - 1.0


def _to_unit(image: Tensor) -> Tensor:
    # In place and returned: newer hosts ignore the return value, older ones use it.
    return image.add_(1.0).div_(2.0).clamp_(0.0, 1.0)
