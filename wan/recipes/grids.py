"""Noise levels as other programs compute them, in their own precision and order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..schedule import TRAIN_TIMESTEPS, Schedule, shift_sigma

SIGMA_MIN = 1 / TRAIN_TIMESTEPS

HostSigmas = Callable[[str, int, float], Tensor]
"""``(scheduler, steps, shift) -> sigmas`` (N+1,) as ComfyUI's scheduler of that name gives them."""


def diffusers_unipc(steps: int, shift: float) -> Schedule:
    """``UniPCMultistepScheduler`` with flow sigmas since diffusers 0.37: from 1 down to 0.001.

    Before, it was the official grid. Timesteps are truncated; the first level stays 1e-6 below 1.
    """
    grid = [i * ((SIGMA_MIN - 1) / steps) + 1 for i in range(steps)]
    levels = [shift_sigma(u, shift) for u in grid]
    if abs(levels[0] - 1) < 1e-6:
        levels[0] -= 1e-6
    return _schedule("diffusers UniPC", [*levels, 0.0], [math.trunc(1000 * s) for s in levels])


def diffusers_dpm(steps: int, shift: float) -> Schedule:
    """``DPMSolverMultistepScheduler`` with flow sigmas: the official UniPC grid."""
    top = 1 - SIGMA_MIN
    levels = [shift_sigma(i * (-top / steps) + top, shift) for i in range(steps)]
    return _schedule("diffusers DPM++", [*levels, 0.0], [math.trunc(1000 * s) for s in levels])


def diffusers_euler(steps: int, shift: float) -> Schedule:
    """``FlowMatchEulerDiscreteScheduler``: down to the lowest level of training, shifted twice."""
    low = shift_sigma(torch.tensor(SIGMA_MIN, dtype=torch.float32), shift).item()
    grid = [1 + i * (low - 1) / max(steps - 1, 1) for i in range(steps)]
    levels = [shift_sigma(u, shift) for u in grid]
    return _schedule("diffusers FlowMatchEuler", [*levels, 0.0], [1000 * s for s in levels])


def distilled(timesteps: Sequence[float], shift: float) -> Schedule:
    """LightX2V's list of timesteps before the shift; whole numbers of the 1000 trained ones."""
    table = torch.linspace(1, 0, TRAIN_TIMESTEPS + 1)[:-1]
    table = shift * table / (1 + (shift - 1) * table)
    chosen = table[[TRAIN_TIMESTEPS - int(t) for t in timesteps]]
    sigmas = torch.cat([chosen, torch.zeros(1)])
    return Schedule(name="LightX2V", sigmas=sigmas, timesteps=(chosen * 1000).double())


def host_schedule(name: str, sigmas: Tensor) -> Schedule:
    """ComfyUI's levels, of which the network is told 1000 times each."""
    sigmas = sigmas.detach().to("cpu", torch.float32)
    return Schedule(name=name, sigmas=sigmas, timesteps=sigmas[:-1].double() * TRAIN_TIMESTEPS)


def host_sigmas(scheduler: str, steps: int, shift: float) -> Tensor:
    """The plain ones of ComfyUI's schedulers, without ComfyUI.

    Raises:
        ValueError: any other scheduler.
    """
    if scheduler not in _HOST:
        raise ValueError(
            f"ComfyUI's scheduler {scheduler!r} is known only inside ComfyUI; "
            f"use Import Wan Recipe there, or one of {', '.join(_HOST)}"
        )
    return _HOST[scheduler](steps, shift)


def _table(shift: float) -> Tensor:
    """The 1000 levels of training, rising."""
    return shift_sigma(torch.arange(1, 1001) / 1000, shift)


def _simple(steps: int, shift: float) -> Tensor:
    table, stride = _table(shift), TRAIN_TIMESTEPS / steps
    return torch.tensor([*(float(table[-(1 + int(i * stride))]) for i in range(steps)), 0.0])


def _normal(steps: int, shift: float) -> Tensor:
    return _between(torch.linspace(1000, 1000 * float(_table(shift)[0]), steps), shift)


def _sgm_uniform(steps: int, shift: float) -> Tensor:
    return _between(torch.linspace(1000, 1000 * float(_table(shift)[0]), steps + 1)[:-1], shift)


def _between(timesteps: Tensor, shift: float) -> Tensor:
    return torch.cat([shift_sigma(timesteps / 1000, shift), torch.zeros(1)])


_HOST: dict[str, Callable[[int, float], Tensor]] = {
    "simple": _simple,
    "normal": _normal,
    "sgm_uniform": _sgm_uniform,
}


def _schedule(name: str, sigmas: Sequence[float], timesteps: Sequence[float]) -> Schedule:
    return Schedule(
        name=name,
        sigmas=torch.tensor(sigmas, dtype=torch.float32),
        timesteps=torch.tensor(timesteps, dtype=torch.float64),
    )
