"""LATENT dictionaries, initial noise, and the run of a guider with progress and previews."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import latent_preview
import torch
from torch import Tensor


def empty_latent(shape: tuple[int, ...]) -> dict[str, Any]:
    """An all-zero LATENT ``(B, C, T, h, w)``."""
    return {"samples": torch.zeros(shape, device=mm.intermediate_device())}


def fit_latent(model: Any, latent: dict[str, Any]) -> Tensor:
    """The samples of a LATENT, an empty one in the channels of ``model``.

    Raises:
        ValueError: latents of another family, or of an odd size.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    wanted = model.get_model_object("latent_format").latent_channels
    if samples.ndim != 5 or samples.shape[1] != wanted:
        raise ValueError(
            f"latents of shape {tuple(samples.shape)} do not fit these experts, which need "
            f"(batch, {wanted}, frames, height / 8, width / 8); use Empty Wan Latent Video"
        )
    if samples.shape[3] % 2 or samples.shape[4] % 2:
        height, width = samples.shape[3] * 8, samples.shape[4] * 8
        raise ValueError(f"{width}x{height} pixels are not multiples of 16; choose sizes that are")
    return samples


def run_guider(
    guider: Any, sampler: Any, sigmas: Tensor, latent: dict[str, Any], samples: Tensor, seed: int
) -> dict[str, Any]:
    """Sample with one progress bar and preview for the whole run; returns a LATENT."""
    steps = sigmas.shape[-1] - 1
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    # The bar shows 0 of N while the first expert is still being loaded.
    comfy.utils.ProgressBar(steps).update_absolute(0)
    callback = latent_preview.prepare_callback(guider.model_patcher, steps)
    result = guider.sample(
        noise,
        samples,
        sampler,
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    out = {k: v for k, v in latent.items() if not k.startswith("downscale_ratio")}
    out["samples"] = result.to(mm.intermediate_device())
    return out
