"""Where one stage gives way to the next: six ways to say it, one boundary, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .experts import ABOVE_ALL, boundary_at_step, check_boundary, count_high
from .schedule import TRAIN_TIMESTEPS, Schedule

KINDS = ("auto", "boundary", "snr", "timestep", "fraction", "step")


@dataclass(frozen=True, slots=True)
class Switch:
    """The place at which a stage ends; everything is inclusive: a tie still belongs to the stage.

    Attributes:
        kind: how the place is said.

            - ``auto``: the boundary the experts were trained with.
            - ``boundary``: a noise level in [0, 1].
            - ``snr``: the signal-to-noise ratio ``((1 - sigma) / sigma)**2`` (>= 0, a plain ratio, not
              decibels; 0.0204 is boundary 0.875).
            - ``timestep``: 0 to 1000, a thousand times the noise level.
            - ``fraction``: the part of all steps done by then, 0 to 1; halves of a step round up.
            - ``step``: the number of steps done by then, counted from the start of the run.
        value: in the units of ``kind``; ``auto`` has none.
    """

    kind: str = "auto"
    value: float = 0.0

    def __post_init__(self) -> None:
        kind, value = self.kind, self.value
        if kind not in KINDS:
            raise ValueError(f"switch={kind!r} is not one of {', '.join(KINDS)}; use auto")
        if kind == "boundary":
            check_boundary(value)
        elif kind == "snr" and not (math.isfinite(value) and value >= 0):
            way = "use about 0.0204"
            if -60 <= value < 0:
                way = f"use {10 ** (value / 10):.4g} if these are decibels"
            raise ValueError(f"switch snr={value:g} is not a ratio of at least 0; {way}")
        elif kind == "timestep" and not 0 <= value <= TRAIN_TIMESTEPS:
            raise ValueError(f"switch timestep={value:g} is not within 0 to 1000; use about 875")
        elif kind == "fraction" and not 0 <= value <= 1:
            way = f"use {value / 100:g}" if 1 < value <= 100 else "use about 0.5"
            raise ValueError(f"switch fraction={value:g} is not within 0 to 1; {way}")
        elif kind == "step" and not (math.isfinite(value) and value == int(value) >= 0):
            raise ValueError(
                f"switch step={value:g} is not a whole number of steps; use one that is"
            )

    def boundary(self, schedule: Schedule, own: float) -> float:
        """The lowest noise level of the stage that ends here, in a run over ``schedule``.

        ``own`` is the boundary the experts were trained with.

        Raises:
            ValueError: the schedule has no such step, see :func:`~.experts.boundary_at_step`.
        """
        if self.kind == "auto":
            return own
        if self.kind == "boundary":
            return self.value
        if self.kind == "snr":
            return sigma_of_snr(self.value)
        if self.kind == "timestep":
            return self.value / TRAIN_TIMESTEPS
        if self.kind == "fraction":
            return boundary_at_step(schedule, math.floor(self.value * schedule.steps + 0.5))
        return boundary_at_step(schedule, int(self.value))


def snr(sigma: float) -> float:
    """Signal-to-noise ratio ``((1 - sigma) / sigma)**2`` at a noise level; inf at 0, 0 at 1."""
    return ((1 - sigma) / sigma) ** 2 if sigma else math.inf


def sigma_of_snr(ratio: float) -> float:
    """The noise level in [0, 1] of a signal-to-noise ratio; inverse of :func:`snr`."""
    return 1 / (1 + math.sqrt(ratio))


def in_all_forms(boundary: float, schedule: Schedule) -> str:
    """The same place in every form :class:`Switch` takes, for a run over ``schedule``.

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
