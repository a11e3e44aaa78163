"""Where one stage gives way to the next: six ways to say it, one boundary.

The way back is ``in_all_forms``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .experts import boundary_at_step, check_boundary
from .experts import in_all_forms as in_all_forms
from .schedule import TRAIN_TIMESTEPS, Schedule

KINDS = ("auto", "boundary", "snr", "timestep", "fraction", "step")
MAX_SNR = 100.0
"""Boundary 0.09: a larger number was meant for another kind."""


@dataclass(frozen=True, slots=True)
class Switch:
    """The place at which a stage ends; everything is inclusive: a tie still belongs to the stage.

    Attributes:
        kind: how the place is said.

            - ``auto``: the boundary the experts were trained with.
            - ``boundary``: a noise level in [0, 1].
            - ``snr``: the signal-to-noise ratio ``((1 - sigma) / sigma)**2`` (0 to 100, a plain ratio,
              not decibels; 0.0204 is boundary 0.875).
            - ``timestep``: 0 to 1000, a thousand times the noise level.
            - ``fraction``: the part of all steps done by then, 0 to 1; halves of a step round up.
            - ``step``: the number of steps done by then, counted from the start of the run.
        value: in the units of ``kind``; ``auto`` has none.
        named: what the person who said it sees it called; for sentences.
    """

    kind: str = "auto"
    value: float = 0.0
    named: str = field(default="switch", kw_only=True, compare=False)

    def __post_init__(self) -> None:
        kind, value, named = self.kind, self.value, self.named
        if kind not in KINDS:
            way = "auto"
            if kind.lower() == "db" and -60 <= value <= 20:
                way = f"snr with the plain ratio {10 ** (value / 10):.4g}"
            raise ValueError(f"{named}={kind!r} is not one of {', '.join(KINDS)}; use {way}")
        if kind == "boundary":
            check_boundary(value)
        elif kind == "snr" and not 0 <= value <= MAX_SNR:
            way = "use about 0.0204"
            if -60 <= value < 0:
                way = f"use {10 ** (value / 10):.4g} if these are decibels"
            raise ValueError(f"{named} snr={value:g} is not a ratio within 0 to {MAX_SNR:g}; {way}")
        elif kind == "timestep" and not 0 <= value <= TRAIN_TIMESTEPS:
            raise ValueError(f"{named} timestep={value:g} is not within 0 to 1000; use about 875")
        elif kind == "fraction" and not 0 <= value <= 1:
            way = f"use {value / 100:g}" if 1 < value <= 100 else "use about 0.5"
            raise ValueError(f"{named} fraction={value:g} is not within 0 to 1; {way}")
        elif kind == "step" and not (math.isfinite(value) and value == int(value) >= 0):
            raise ValueError(
                f"{named} step={value:g} is not a whole number of steps; use one that is"
            )

    @property
    def level(self) -> float | None:
        """The noise level that the numbers alone say; None where experts or a schedule decide it."""
        if self.kind == "boundary":
            return self.value
        if self.kind == "snr":
            return sigma_of_snr(self.value)
        return self.value / TRAIN_TIMESTEPS if self.kind == "timestep" else None

    def boundary(self, schedule: Schedule, own: float) -> float:
        """The lowest noise level of the stage that ends here, in a run over ``schedule``.

        ``own`` is the boundary the experts were trained with.

        Raises:
            ValueError: the schedule has no such step, see :func:`~.experts.boundary_at_step`.
        """
        if self.kind == "auto":
            return own
        if self.level is not None:
            return self.level
        share = self.kind == "fraction"
        step = math.floor(self.value * schedule.steps + 0.5) if share else int(self.value)
        return boundary_at_step(schedule, step, self.named)


def sigma_of_snr(ratio: float) -> float:
    """The noise level in [0, 1] of a signal-to-noise ratio; inverse of :func:`~.experts.snr`."""
    return 1 / (1 + math.sqrt(ratio))
