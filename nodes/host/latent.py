"""LATENT dictionaries, initial noise, and the run of a guider with progress and previews."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ...wan.shapes import check_size, pixel_size
from .tiny import find_previewer

PREVIEW_FRAMES = 4


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
    check_size(*pixel_size(*samples.shape[3:]))
    return samples


def is_ignored(latent: dict[str, Any]) -> bool:
    """Whether a run from pure noise will not look at what is in this LATENT."""
    return latent.get("noise_mask") is None and bool(torch.count_nonzero(latent["samples"]))


def progress_callback(model: Any, steps: int) -> Callable[..., None]:
    """One progress bar for a run, from 0; its preview shows the clip, not only its first frame."""
    bar = comfy.utils.ProgressBar(steps)
    # The bar shows 0 of N while the first expert is still being loaded.
    bar.update_absolute(0)
    previewer = find_previewer(model.load_device, model.model.latent_format)

    def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
        preview = preview_sheet(previewer, x0) if previewer else None
        bar.update_absolute(step + 1, total, preview)

    return callback


def preview_sheet(previewer: Any, x0: Tensor) -> tuple[str, Image.Image, int]:
    """Four latent frames of the first clip, from first to last, as ComfyUI's preview of one image."""
    count = x0.shape[2]
    chosen = sorted({round(i * (count - 1) / (PREVIEW_FRAMES - 1)) for i in range(PREVIEW_FRAMES)})
    shots = [previewer.decode_latent_to_preview_image("JPEG", x0[:1, :, i : i + 1]) for i in chosen]
    _, first, largest = shots[0]
    columns = min(2, len(shots))
    rows = -(-len(shots) // columns)
    sheet = Image.new("RGB", (columns * first.width, rows * first.height))
    for index, (_, image, _) in enumerate(shots):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * first.width, row * first.height))
    return "JPEG", sheet, largest


def run_guider(
    guider: Any, sampler: Any, sigmas: Tensor, latent: dict[str, Any], samples: Tensor, seed: int
) -> dict[str, Any]:
    """Sample with one progress bar and preview for the whole run; returns a LATENT."""
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    callback = progress_callback(guider.model_patcher, sigmas.shape[-1] - 1)
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
