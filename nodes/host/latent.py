"""LATENT dictionaries, initial noise, and the run of a guider that is watched."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.sample
import comfy.utils
import torch
from torch import Tensor

from ...wan.noise import LAYOUTS, MAX_SEED, draw_noise
from ...wan.shapes import check_size, pixel_size
from .forecast import remember
from .tiny import find_previewer
from .watch import Watch


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


def initial_noise(
    samples: Tensor, seed: int, layout: str, batch_index: list[int] | None = None
) -> Tensor:
    """Noise for ``samples`` (B, C, T, h, w), see :func:`draw_noise`.

    ``comfy`` is ComfyUI's own over the whole batch. ``official``, which knows no batches, gives clip i
    the seed ``seed + i``.
    """
    if layout == LAYOUTS[0]:
        return comfy.sample.prepare_noise(samples, seed, batch_index)
    numbers = range(samples.shape[0]) if batch_index is None else batch_index
    clips = [
        draw_noise((1, *samples.shape[1:]), (seed + number) % (MAX_SEED + 1), layout)
        for number in numbers
    ]
    return torch.cat(clips)


class LayoutNoise:
    """A NOISE of ComfyUI, drawn in a layout of ours."""

    def __init__(self, seed: int, layout: str) -> None:
        """``layout`` is one of ``wan.noise.LAYOUTS``."""
        self.seed, self._layout = seed, layout

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        """Noise for a LATENT."""
        batch_index = latent.get("batch_index")
        return initial_noise(latent["samples"], self.seed, self._layout, batch_index)


def run_guider(
    guider: Any,
    sampler: Any,
    sigmas: Tensor,
    latent: dict[str, Any],
    samples: Tensor,
    seed: int,
    layout: str = LAYOUTS[0],
) -> dict[str, Any]:
    """Sample with one progress bar and preview for the whole run; returns a LATENT."""
    noise = initial_noise(samples, seed, layout, latent.get("batch_index"))
    model, quiet = guider.model_patcher, not comfy.utils.PROGRESS_BAR_ENABLED
    previewer = find_previewer(model.load_device, model.model.latent_format)
    watch = Watch(guider.plan_run(sigmas), sampler.wan_solver, previewer, quiet=quiet)
    try:
        result = guider.sample(
            noise,
            samples,
            sampler,
            sigmas,
            denoise_mask=latent.get("noise_mask"),
            callback=watch,
            disable_pbar=quiet,
            seed=seed,
        )
    finally:
        watch.close()
    remember(guider, samples, watch.pace.seconds_per_call)
    out = {k: v for k, v in latent.items() if not k.startswith("downscale_ratio")}
    out["samples"] = result.to(mm.intermediate_device())
    return out
