"""Our schedules and solvers in ComfyUI's terms: a ``model_sampling`` object and a SAMPLER."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ...wan.sampling import Progress, sample
from ...wan.schedule import (
    OFFICIAL_SIGMA_MAX,
    TRAIN_TIMESTEPS,
    Schedule,
    make_schedule,
    shift_sigma,
)
from ...wan.solvers import get_solver

OFFICIAL = "unipc"
GRID_TOLERANCE = 1e-6


def pure_noise(shift: float) -> float:
    """The level at and above which a run starts from noise alone: the top of the official grid."""
    return shift_sigma(OFFICIAL_SIGMA_MAX, shift)


class WanSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Flow sampling in which the network is told exactly what ``schedule`` says."""

    def __init__(self, schedule: Schedule, shift: float) -> None:
        """``shift`` places the level of pure noise and the percents of conditionings."""
        super().__init__()
        self.set_parameters(shift=shift)
        self._schedule = schedule

    @property
    def sigma_max(self) -> Tensor:
        """The level of pure noise, whatever part of the way the run under way goes."""
        return torch.tensor(pure_noise(self.shift))

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the network is given at noise levels ``sigma`` (B,)."""
        values = [self._schedule.timestep(level) for level in sigma.flatten().tolist()]
        return torch.tensor(values, dtype=torch.float32, device=sigma.device).view(sigma.shape)

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False
    ) -> Tensor:
        """The start of a run; at pure noise it is the noise itself, as the official code has it."""
        if max_denoise:
            return noise
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)


def with_schedule(patcher: Any, schedule: Schedule, shift: float) -> Any:
    """A clone of a MODEL that is told the schedule's timesteps; the caller's MODEL stays as it is."""
    clone = patcher.clone()
    clone.add_object_patch("model_sampling", WanSampling(schedule, shift))
    return clone


def foreign_shift(patcher: Any, shift: float) -> str:
    """What to tell of a ``model_sampling`` patch that :func:`with_schedule` replaces; "" for none."""
    patch = getattr(patcher, "object_patches", {}).get("model_sampling")
    own = getattr(patch, "shift", None)
    if patch is None or own == shift:
        return ""
    told = "a sampling patch" if own is None else f"a sampling patch of shift {own:g}"
    return f"{told} on a MODEL is not used; sigma_shift {shift:g} of this node is"


def recognise(sigmas: Tensor, shift: float) -> Schedule:
    """The schedule behind SIGMAS from another node.

    The official UniPC grid is known by its levels and gets its whole timesteps; any other grid gets
    ``1000 * sigma``. (The DPM++ grid has the levels of the plain one: they cannot be told apart.)

    Args:
        sigmas: (N+1,) descending noise levels.
        shift: shift of the official grid to compare with.

    Raises:
        ValueError: these are not noise levels of flow matching.
    """
    given = plain(sigmas)
    official = make_schedule(OFFICIAL, steps=given.steps, shift=shift)
    if not torch.allclose(official.sigmas, given.sigmas, rtol=0, atol=GRID_TOLERANCE):
        return given
    return Schedule(name=OFFICIAL, sigmas=given.sigmas, timesteps=official.timesteps)


def plain(sigmas: Tensor) -> Schedule:
    """A schedule on any descending ``sigmas`` (N+1,), with fractional timesteps."""
    sigmas = sigmas.detach().to("cpu", torch.float32)
    return Schedule(name="custom", sigmas=sigmas, timesteps=sigmas[:-1].double() * TRAIN_TIMESTEPS)


def solver_sampler(name: str) -> Any:
    """One of our solvers as a SAMPLER, usable by any ComfyUI guider."""
    solver = get_solver(name)

    def run(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: bool | None = None,
    ) -> Tensor:
        batch = x.new_ones(x.shape[0])

        def velocity(x: Tensor, sigma: float) -> Tensor:
            denoised = model(x, sigma * batch, **(extra_args or {}))
            return (x - denoised) / sigma

        def report(progress: Progress) -> None:
            callback(
                {
                    "i": progress.step - 1,
                    "x": progress.x,
                    "denoised": progress.denoised,
                    "sigma": progress.sigma,
                    "sigma_hat": progress.sigma,
                }
            )

        return sample(velocity, x, plain(sigmas), solver, callback=report if callback else None)

    return comfy.samplers.KSAMPLER(run)
