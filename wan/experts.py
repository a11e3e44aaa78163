"""Which expert runs at which noise level: the one definition of the boundary.

The expert of a step is chosen by the noise level the network is told there (its timestep over 1000,
truncated on the official grids), never by counting steps: ``level >= boundary`` is high noise, and a
tie is high noise. Two experts are two stages; nothing here is limited to two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from .schedule import TRAIN_TIMESTEPS, Schedule, Velocity

BOUNDARY_TOLERANCE = 1e-6
"""Noise levels this close below a boundary count as on it (0.001 in timesteps): a level that equals
the boundary in exact arithmetic may miss it by a rounding (0.9 is 0.89999998 in float32)."""

ABOVE_ALL = 2.0
"""A boundary above every noise level: the stage runs no step. Finite, so that it can be saved."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One expert and the noise levels it runs on.

    Attributes:
        name: for reports, such as "high_noise".
        boundary: lowest noise level it runs on, inclusive, in [0, 1]; 0 for the last stage.
        velocity: ``(x (B, C, T, H, W) float32, sigma) -> velocity``, guidance included.
    """

    name: str
    boundary: float
    velocity: Velocity

    def __post_init__(self) -> None:
        check_boundary(self.boundary)


def check_boundary(boundary: float) -> None:
    """Raise ValueError unless ``boundary`` is a noise level in [0, 1] (or ``ABOVE_ALL``)."""
    if not (0 <= boundary <= 1 or boundary == ABOVE_ALL):
        way = f"use {boundary / 1000:g}" if 1 < boundary <= 1000 else "use about 0.875 or 0.9"
        raise ValueError(f"boundary={boundary:g} is not a noise level in [0, 1]; {way}")


def is_high(level: float, boundary: float) -> bool:
    """Whether a noise ``level`` (see ``Schedule.level``) belongs above ``boundary``; ties are high."""
    return level >= boundary - BOUNDARY_TOLERANCE


def select(boundaries: Sequence[float], level: float) -> int:
    """Index of the stage that runs at ``level``: the first whose boundary is not above it."""
    return next(i for i, boundary in enumerate(boundaries) if is_high(level, boundary))


def check_order(boundaries: Sequence[float]) -> None:
    """Raise ValueError unless the ``boundaries`` of stages never ascend and end at 0."""
    if not boundaries or boundaries[-1] != 0:
        raise ValueError(
            f"stages with boundaries {list(boundaries)} do not reach noise level 0; "
            "give the last stage boundary 0"
        )
    if any(after > before for before, after in pairwise(boundaries)):
        raise ValueError(
            f"stages with boundaries {list(boundaries)} are not in order; put the high-noise stage "
            "first, and let each end at a lower noise level than the one before"
        )


def route(stages: Sequence[Stage], schedule: Schedule) -> Velocity:
    """One velocity made of all ``stages``: each level of ``schedule`` goes to its stage, for one run.

    Latched: once a stage has run, earlier ones never run again, even if a solver looks back to a
    higher level, so that weights change hands at most once. Make a new one for every run.
    """
    stages = tuple(stages)
    boundaries = [stage.boundary for stage in stages]
    check_order(boundaries)
    current = 0

    def velocity(x: Tensor, sigma: float) -> Tensor:
        nonlocal current
        current = max(current, select(boundaries, schedule.level(sigma)))
        return stages[current].velocity(x, sigma)

    return velocity


def count_high(schedule: Schedule, boundary: float) -> int:
    """Number of steps of ``schedule`` that run at or above ``boundary``: 0..N."""
    check_boundary(boundary)
    return sum(is_high(level, boundary) for level in schedule.levels())


def boundary_at_step(schedule: Schedule, step: int, named: str = "switch") -> float:
    """A noise level that makes exactly the first ``step`` steps of ``schedule`` high.

    Midway between the two neighbouring levels, so that no rounding by a host moves the switch;
    0 for ``step == N`` (all high), ``ABOVE_ALL`` for ``step == 0`` (none). Sentences call it ``named``.

    Raises:
        ValueError: ``step`` is not in 0..N, or the steps round it are told one and the same
            truncated timestep, so that no noise level lies between them.
    """
    steps = schedule.steps
    if not 0 <= step <= steps:
        raise ValueError(
            f"{named} step={step} is not within the {steps} steps; "
            f"use 0 (all low noise) to {steps} (all high noise)"
        )
    if step == 0:
        return ABOVE_ALL
    if step == steps:
        return 0.0
    above, below = schedule.levels()[step - 1 : step + 1]
    if above - below <= 2 * BOUNDARY_TOLERANCE:
        raise ValueError(
            f"{named} step={step} divides two steps that are both told timestep {1000 * above:g}; "
            "use another step or fewer steps"
        )
    return (above + below) / 2


def snr(sigma: float) -> float:
    """Signal-to-noise ratio ``((1 - sigma) / sigma)**2`` at a noise level; inf at 0, 0 at 1."""
    return ((1 - sigma) / sigma) ** 2 if sigma else math.inf


def in_all_forms(boundary: float, schedule: Schedule) -> str:
    """The same place in every form :class:`wan.switch.Switch` takes, for a run over ``schedule``.

    ``boundary 0.8750, SNR 0.0204 (-16.9 dB), timestep 875.0, fraction 0.650, step 26 of 40``; what a
    boundary at either end of the noise levels has no number for is left out.
    """
    done = count_high(schedule, boundary)
    forms = []
    if boundary != ABOVE_ALL:
        forms.append(f"boundary {boundary:.4f}")
    if 0 < boundary < 1:
        ratio = snr(boundary)
        forms.append(f"SNR {ratio:.4g} ({10 * math.log10(ratio):.1f} dB)")
    if boundary != ABOVE_ALL:
        forms.append(f"timestep {TRAIN_TIMESTEPS * boundary:.1f}")
    forms += [f"fraction {done / schedule.steps:.3f}", f"step {done} of {schedule.steps}"]
    return ", ".join(forms)
