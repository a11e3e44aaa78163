"""What a recipe means in ComfyUI: its own schedulers and samplers by their names."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from torch import Tensor

from ...wan.recipes import Recipe
from .sampling import core_schedule, scheduler_names, solver_sampler


def host_sigmas(scheduler: str, steps: int, shift: float) -> Tensor:
    """Noise levels (N+1,) of ComfyUI's ``scheduler``.

    Raises:
        ValueError: ComfyUI has no such scheduler, or it is not for flow matching.
    """
    if scheduler not in scheduler_names():
        raise ValueError(
            f"this ComfyUI has no scheduler {scheduler!r}; install the pack that brings it, or change "
            "the recipe"
        )
    return core_schedule(scheduler, steps, shift).sigmas


def sampler_of(recipe: Recipe) -> Any:
    """The SAMPLER of a recipe: ComfyUI's own where it names one, else a solver of this pack.

    Raises:
        ValueError: ComfyUI has no such sampler.
    """
    name = recipe.host_sampler
    if name is None:
        return solver_sampler(recipe.solver)
    if name not in comfy.samplers.SAMPLER_NAMES:
        raise ValueError(
            f"this ComfyUI has no sampler {name!r}; install the pack that brings it, or change the recipe"
        )
    return comfy.samplers.sampler_object(name)
