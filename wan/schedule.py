"""Noise schedules of flow matching: grids, shift, timestep truncation, and their inverses. Pure.

``sigma`` is a noise level in [0, 1]: ``x = (1 - sigma) * clean + sigma * noise``. The network is
given a timestep ``t`` in [0, 1000], close to ``1000 * sigma`` but not always equal to it, and
returns the velocity ``noise - clean``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""``(x (B, C, T, H, W) float32, sigma) -> velocity`` of the same shape."""

TRAIN_TIMESTEPS = 1000
"""Timestep of pure noise."""

OFFICIAL_SIGMA_MAX = torch.tensor(1 - 1 / TRAIN_TIMESTEPS, dtype=torch.float32).item()
"""First point of the official UniPC grid: 0.999 as float32 holds it, because the official code
stores its table in float32 and reads the end back. float64 0.999 would shift the whole grid."""

Level = TypeVar("Level", float, Tensor)


def shift_sigma(u: Level, shift: float) -> Level:
    """Move the grid position ``u`` in [0, 1] towards noise: ``s u / (1 + (s - 1) u)``."""
    return shift * u / (1 + (shift - 1) * u)


def unshift_sigma(sigma: Level, shift: float) -> Level:
    """Inverse of :func:`shift_sigma`: the grid position in [0, 1] of the noise level ``sigma``."""
    return sigma / (shift - (shift - 1) * sigma)


def half_log_snr(sigma: Tensor) -> Tensor:
    """``ln((1 - sigma) / sigma)``, the time in which the solvers are exact; -inf at 1, inf at 0.

    Computed in ``sigma``'s dtype as a difference of logarithms, like the official code.
    """
    return torch.log(1 - sigma) - torch.log(sigma)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Schedule:
    """The noise levels of one run and what the network is told about them.

    Attributes:
        name: the schedule's name, for reports.
        sigmas: (N+1,) float32 on the CPU, strictly descending in [0, 1]; ``sigmas[i]`` is the level
            step ``i`` starts from, the last is 0.
        timesteps: (N,) float64 on the CPU in [0, 1000]; the network's timestep at ``sigmas[i]``.
    """

    name: str
    sigmas: Tensor
    timesteps: Tensor

    def __post_init__(self) -> None:
        check_sigmas(self.sigmas)
        if self.timesteps.shape != (self.steps,):
            raise ValueError(
                f"{self.timesteps.numel()} timesteps for {self.steps} steps; give one per step"
            )

    @property
    def steps(self) -> int:
        """Number of solver steps N."""
        return self.sigmas.numel() - 1

    def timestep(self, sigma: float) -> float:
        """What the network is given at ``sigma``.

        A level of the grid (equal in float32) gives its own timestep, even where two neighbours
        truncate to the same integer; any other level gives ``1000 * sigma``.
        """
        found = (self.sigmas[:-1] == torch.tensor(sigma, dtype=torch.float32)).nonzero()
        if found.numel():
            return self.timesteps[int(found[0])].item()
        return TRAIN_TIMESTEPS * sigma

    def level(self, sigma: float) -> float:
        """The noise level the network is told at ``sigma``: its timestep over 1000, in [0, 1]."""
        return self.timestep(sigma) / TRAIN_TIMESTEPS

    def levels(self) -> list[float]:
        """The noise levels the network is told, one per step; truncated ones may repeat."""
        return [timestep / TRAIN_TIMESTEPS for timestep in self.timesteps.tolist()]


def check_sigmas(sigmas: Tensor) -> None:
    """Raise ValueError unless ``sigmas`` (N+1,) with N >= 1 descends strictly within [0, 1]."""
    if sigmas.ndim != 1 or sigmas.numel() < 2:
        raise ValueError(
            f"sigmas of shape {tuple(sigmas.shape)} are not N+1 noise levels; "
            "give a list of at least two"
        )
    low, high = sigmas.min().item(), sigmas.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"sigmas go from {low:.8g} to {high:.8g}, outside [0, 1]; "
            "use a flow-matching schedule (1 is pure noise, 0 is clean)"
        )
    if bool((sigmas.diff() > 0).any()):
        raise ValueError("sigmas go up; give them from noise (1) down to clean (0)")
    if not bool((sigmas.diff() < 0).all()):
        raise ValueError(
            f"{sigmas.numel() - 1} sigmas do not descend strictly in float32; "
            "use fewer steps or a smaller shift"
        )


def _unipc(steps: int, shift: float) -> Schedule:
    """The official default grid: from 0.999 down, integer timesteps."""
    return _schedule("unipc", OFFICIAL_SIGMA_MAX, steps, shift, math.trunc)


def _dpmpp(steps: int, shift: float) -> Schedule:
    """The official DPM++ grid: from 1 down, integer timesteps."""
    return _schedule("dpm++", 1.0, steps, shift, math.trunc)


def _shifted(steps: int, shift: float) -> Schedule:
    """From 1 down with exact, fractional timesteps: what distilled models are trained on."""
    return _schedule("shifted", 1.0, steps, shift, float)


def _lightning(steps: int, shift: float) -> Schedule:
    """The grid of 4-step Lightning models: 1000, 750, 500, 250 before the shift, exact timesteps.

    Source: ``denoising_step_list`` of LightX2V's Wan2.2 distill configurations.
    """
    _check_count("lightning", steps, 4)
    return _schedule("lightning", 1.0, steps, shift, float)


LCM_TIMESTEPS = (1000, 757, 522)
"""What FastWan models are distilled on, shift included (FastVideo, ``dmd_denoising_steps``)."""


def _lcm(steps: int, shift: float) -> Schedule:
    """The list of 3-step DMD models as it is: ``shift`` does not act on it."""
    del shift
    _check_count("lcm", steps, len(LCM_TIMESTEPS))
    return custom_schedule(LCM_TIMESTEPS, name="lcm")


def _check_count(name: str, steps: int, only: int) -> None:
    if steps != only:
        raise ValueError(f"steps={steps} does not fit the {name} schedule; use its {only} steps")


def _schedule(
    name: str, top: float, steps: int, shift: float, as_timestep: Callable[[float], float]
) -> Schedule:
    # One multiplication and one addition per point in float64, as numpy.linspace does: a grid that
    # is one rounding away can truncate to another integer timestep.
    grid = [i * (-top / steps) + top for i in range(steps)]
    levels = [shift_sigma(u, shift) for u in grid]
    return Schedule(
        name=name,
        sigmas=torch.tensor([*levels, 0.0], dtype=torch.float32),
        timesteps=torch.tensor(
            [as_timestep(TRAIN_TIMESTEPS * level) for level in levels], dtype=torch.float64
        ),
    )


SCHEDULES: dict[str, Callable[[int, float], Schedule]] = {
    "unipc": _unipc,
    "dpm++": _dpmpp,
    "shifted": _shifted,
    "lightning": _lightning,
    "lcm": _lcm,
}
"""Name -> grid: ``(steps, shift) -> Schedule``. Call them through :func:`make_schedule`."""


def make_schedule(name: str, *, steps: int, shift: float) -> Schedule:
    """The schedule called ``name`` with ``steps`` steps (>= 1) and ``shift`` (> 0, 1 = no shift).

    Raises:
        ValueError: unknown name, or steps or shift out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; use one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise ValueError(f"steps={steps} is not at least 1; use 4 to 50")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"shift={shift} is not a positive number; use 1 (no shift) to 16")
    return SCHEDULES[name](steps, shift)


def custom_schedule(timesteps: Sequence[float], *, name: str = "custom") -> Schedule:
    """The schedule of a list of ``timesteps``, such as one published with a distilled model.

    The noise levels are the timesteps over 1000 and the network is told the timesteps as they are:
    whole ones in the list are whole for the network. The run goes on from the last one to 0.

    Args:
        timesteps: at least one, strictly descending in [0, 1000]; a 0 at the end may be left out.
        name: for reports.

    Raises:
        ValueError: an empty list, a timestep out of range, or one that is not below the one before.
    """
    given = list(timesteps)
    if given and given[-1] == 0:
        given.pop()
    if not given:
        raise ValueError("the list has no timesteps; give some, such as 1000, 750, 500, 250")
    for timestep in given:
        if not 0 <= timestep <= TRAIN_TIMESTEPS:
            raise ValueError(
                f"timestep {timestep:g} of the list is not within 0 to 1000; use 1000 for pure noise"
            )
    for before, after in pairwise(given):
        if not after < before:
            raise ValueError(
                f"timestep {after:g} of the list comes after {before:g}; "
                "go down with every step, from noise (1000) to clean (0)"
            )
    levels = [timestep / TRAIN_TIMESTEPS for timestep in given]
    return Schedule(
        name=name,
        sigmas=torch.tensor([*levels, 0.0], dtype=torch.float32),
        timesteps=torch.tensor(given, dtype=torch.float64),
    )


def parse_timesteps(text: str) -> list[float]:
    """The timesteps written in ``text``, for :func:`custom_schedule`.

    Separated by commas, semicolons, spaces or lines, in any brackets: ``[1000, 750, 500, 250]``. Where
    the largest number is at most 1, they are noise levels and become timesteps.

    Raises:
        ValueError: something is not a number.
    """
    words = re.split(r"[\s,;()\[\]]+", text)
    try:
        numbers = [float(word) for word in words if word]
    except ValueError as error:
        raise ValueError(
            f"the list {text.strip()!r} holds what is not a number; "
            "write timesteps such as 1000, 750, 500, 250"
        ) from error
    if numbers and max(numbers) <= 1:
        return [TRAIN_TIMESTEPS * number for number in numbers]
    return numbers
