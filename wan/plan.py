"""The plan of a run: which stage runs each step, known before anything heavy is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

from .experts import check_boundary, check_order, in_all_forms, select
from .guidance import Guidance
from .schedule import OFFICIAL_SIGMA_MAX, Schedule, shift_sigma


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """One stage of a run, without its network.

    Attributes:
        name: for reports, such as ``high noise``.
        boundary: lowest noise level it runs on, inclusive, in [0, 1]; 0 for the last stage.
        guidance: its guidance scale over the noise level.
    """

    name: str
    boundary: float
    guidance: Guidance

    def __post_init__(self) -> None:
        check_boundary(self.boundary)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunPlan:
    """What runs where; the library and ComfyUI's nodes run exactly this.

    Attributes:
        schedule: noise levels of the run and what the network is told of them.
        shift: the shift behind ``schedule``.
        stages: at least one, from noise to clean; two experts are two stages.
        notes: what a person should know before waiting for the result, one sentence each.

    Raises:
        ValueError: the stages' boundaries ascend or do not end at 0.
    """

    schedule: Schedule
    shift: float
    stages: tuple[StageSpec, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_order(self.boundaries)

    @property
    def boundaries(self) -> tuple[float, ...]:
        """The lowest noise level of each stage."""
        return tuple(stage.boundary for stage in self.stages)

    def stage_of(self, sigma: float) -> int:
        """Index of the stage that is due at the noise level ``sigma``; ties go to the earlier one."""
        return select(self.boundaries, self.schedule.level(sigma))

    def stage_at(self, step: int) -> int:
        """Index of the stage that runs ``step`` (0..N-1)."""
        return self._owners()[step]

    def steps_of(self, index: int) -> range:
        """The steps (0..N-1) that stage ``index`` runs; empty if it runs none."""
        owners = self._owners()
        first = sum(owner < index for owner in owners)
        return range(first, first + owners.count(index))

    def idle(self) -> tuple[str, ...]:
        """A sentence for each stage of a whole run that runs no step; part of a run may need one only."""
        sigmas = self.schedule.sigmas
        if sigmas[-1] > 0 or sigmas[0] < shift_sigma(OFFICIAL_SIGMA_MAX, self.shift) - 1e-5:
            return ()
        return tuple(
            f"the {stage.name} stage runs none of the {self.schedule.steps} steps; "
            "for all stages use another switch or more steps"
            for index, stage in enumerate(self.stages)
            if not self.steps_of(index)
        )

    def noted(self, *notes: str) -> RunPlan:
        """The same plan with these notes after its own, each once."""
        return replace(self, notes=tuple(dict.fromkeys([*self.notes, *notes])))

    def _owners(self) -> list[int]:
        """The stage of each step; once one has run, earlier ones never do, see ``route``."""
        due = (select(self.boundaries, level) for level in self.schedule.levels())
        return list(accumulate(due, max))


def describe(plan: RunPlan) -> str:
    """The plan as text: totals, each switch in all forms, a line per step, then the notes."""
    schedule, stages = plan.schedule, plan.stages
    totals = ", ".join(
        f"{len(plan.steps_of(index))} {stage.name}" for index, stage in enumerate(stages)
    )
    lines = [f"{schedule.steps} steps, {schedule.name} grid, shift {plan.shift:g}: {totals}"]
    lines += [
        f"{stage.name} until {in_all_forms(stage.boundary, schedule)}" for stage in stages[:-1]
    ]
    lines.append("step   sigma    timestep    cfg  stage")
    for step, (sigma, timestep) in enumerate(
        zip(schedule.sigmas.tolist(), schedule.timesteps.tolist(), strict=False)
    ):
        stage = stages[plan.stage_at(step)]
        scale = f"{stage.guidance.at(sigma):5.4g}"
        lines.append(f"{step + 1:4d}  {sigma:.5f}  {timestep:8.2f}  {scale}  {stage.name}")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])
