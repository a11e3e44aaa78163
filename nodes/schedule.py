"""Schedules and solvers for ComfyUI's own sampling nodes: SIGMAS and SAMPLER."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan.experts import count_high
from ..wan.guidance import Guidance
from ..wan.plan import RunPlan
from ..wan.schedule import (
    SCHEDULES,
    Schedule,
    custom_schedule,
    make_schedule,
    parse_timesteps,
)
from ..wan.solvers import SOLVERS
from ..wan.switch import in_all_forms
from .checks import CheckedNode, check_limits, unless_linked, widget
from .host import compat
from .host.picture import as_image, draw_plan
from .host.sampling import as_sigmas, core_schedule, scheduler_names, solver_sampler
from .trajectory import CATEGORY, DEFAULTS, SWITCHES, WiredStage, plan_run, read_switch

LIST = "list"
"""The schedule that is written into ``timesteps``."""

OWN_STEPS = ("lcm", LIST)
"""Schedules that the shift does not act on."""


def core_names() -> dict[str, str]:
    """What each of ComfyUI's schedulers is called in our list -> its name there."""
    taken = {*SCHEDULES, LIST}
    return {f"{name} (ComfyUI)" if name in taken else name: name for name in scheduler_names()}


def scheduler_choices() -> list[str]:
    """Ours, then ComfyUI's."""
    return [*SCHEDULES, LIST, *core_names()]


def schedule_for(scheduler: str, steps: int, shift: float, timesteps: str) -> Schedule:
    """The schedule that the widgets say.

    Raises:
        ValueError: an unknown scheduler, or numbers it cannot take.
    """
    check_limits(steps=steps, sigma_shift=shift)
    if scheduler == LIST:
        return custom_schedule(parse_timesteps(timesteps), name=LIST)
    if name := core_names().get(scheduler):
        return core_schedule(name, steps, shift)
    if scheduler not in SCHEDULES:
        raise ValueError(
            f"unknown scheduler {scheduler!r}; use one of {', '.join(scheduler_choices())}"
        )
    return make_schedule(scheduler, steps=steps, shift=shift)


def describe_schedule(plan: RunPlan) -> str:
    """The schedule as text: totals, the switch in all forms, levels, timesteps, then the notes."""
    schedule, (high, low) = plan.schedule, plan.stages
    count = len(plan.steps_of(0))
    lines = [
        f"{schedule.steps} steps, {schedule.name} schedule, shift {plan.shift:g}: "
        f"{count} {high.name}, {schedule.steps - count} {low.name}",
        f"switch: {in_all_forms(high.boundary, schedule)}",
        "sigmas: " + ", ".join(f"{sigma:.6g}" for sigma in schedule.sigmas.tolist()),
        "timesteps: " + ", ".join(f"{t:.6g}" for t in schedule.timesteps.tolist()),
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


class WanExpertsSchedule(CheckedNode):
    """Noise levels of a run, where the experts change, and a picture of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsSchedule",
            display_name="Wan Sigmas",
            category=CATEGORY,
            description="Noise levels for SamplerCustomAdvanced: the official grids of Wan, those of "
            "distilled models, a list of your own, or any scheduler of ComfyUI; with the step at "
            "which the experts change and a picture.",
            search_aliases=["wan", "scheduler", "shift", "lightning", "basic scheduler", "万相"],
            inputs=[
                io.Combo.Input(
                    "scheduler", options=scheduler_choices(), default=DEFAULTS.schedule,
                    tooltip="unipc, dpm++: the official grids. shifted: the plain one. lightning: 4 "
                    "steps of Lightning models. lcm: 3 steps of FastWan models. list: the timesteps "
                    "below. Then ComfyUI's own, for a flow model of this shift.",
                ),
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, **widget("steps"),
                    tooltip="Steps of both experts together, 1 to 1000. lightning needs 4, lcm 3; a list has "
                    "as many as it has timesteps.",
                ),
                io.Float.Input(
                    "sigma_shift", default=DEFAULTS.shift, **widget("sigma_shift"),
                    tooltip="How long the run stays at high noise, where layout and motion are settled: 12 "
                    "is official for Wan2.2 14B text to video, 5 for Lightning, 1 bends nothing. It "
                    "does not act on lcm and list.",
                ),
                *_switch_inputs(),
                io.String.Input(
                    "timesteps", default="1000, 750, 500, 250", multiline=True,
                    tooltip="Only for scheduler = list: timesteps from noise (1000) down, or noise "
                    "levels (1 down), as published; the end at 0 may be left out.",
                ),
                io.Model.Input(
                    "model", optional=True,
                    tooltip="Any of the experts, for the boundary that auto takes. Nothing is loaded.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="sigmas",
                    tooltip="For SamplerCustomAdvanced. Our guiders give the network the official whole "
                    "timesteps of these sigmas, or of a part from SplitSigmas; other guiders give it "
                    "1000 times the noise level.",
                ),
                io.Int.Output(
                    display_name="switch_step",
                    tooltip="Steps of the high-noise expert: for switch = step, SplitSigmas or "
                    "KSampler (Advanced).",
                ),
                io.Image.Output(
                    display_name="plot", tooltip="The noise levels in the colours of the experts."
                ),
                io.String.Output(
                    display_name="summary", tooltip="The switch in all forms, sigmas, timesteps."
                ),
            ],
        )  # fmt: skip

    @classmethod
    def check_inputs(
        cls,
        scheduler: str | None = None,
        steps: int | None = None,
        sigma_shift: float | None = None,
        switch: str | None = None,
        boundary: float | None = None,
        switch_step: int | None = None,
        switch_value: float | None = None,
        timesteps: str | None = None,
        **_: Any,
    ) -> None:
        """Everything the numbers alone can tell."""
        given = (scheduler, steps, sigma_shift, switch, boundary, switch_step, switch_value)
        unless_linked(_plan, *given, timesteps)

    @classmethod
    def execute(
        cls,
        scheduler: str,
        steps: int,
        sigma_shift: float,
        switch: str,
        boundary: float,
        switch_step: int,
        switch_value: float,
        timesteps: str,
        model: Any = None,
    ) -> io.NodeOutput:
        """Compute; nothing is loaded."""
        given = (scheduler, steps, sigma_shift, switch, boundary, switch_step, switch_value)
        plan = _plan(*given, timesteps, model)
        return io.NodeOutput(
            as_sigmas(plan.schedule, None if scheduler in OWN_STEPS else sigma_shift),
            count_high(plan.schedule, plan.boundaries[0]),
            as_image(draw_plan(plan)),
            describe_schedule(plan),
        )


def _switch_inputs() -> list[Any]:
    """Where the experts change."""
    return [
        io.Combo.Input(
            "switch", options=SWITCHES, default="auto",
            tooltip="Where the experts change. auto: at the boundary of the MODEL, 0.875 "
            "without one. boundary, step: as below. snr, timestep, fraction: switch_value.",
        ),
        io.Float.Input(
            "boundary", default=DEFAULTS.boundary, **widget("boundary"),
            tooltip="Only for switch = boundary: the lowest noise level of the high-noise "
            "expert, 0 to 1. Official: 0.875.",
        ),
        io.Int.Input(
            "switch_step", default=_default_step(), **widget("switch_step"),
            tooltip="Only for switch = step: how many steps the high-noise expert runs.",
        ),
        io.Float.Input(
            "switch_value", default=1000 * DEFAULTS.boundary, **widget("switch_value"),
            tooltip="Only for switch = snr (((1 - sigma) / sigma)^2, a ratio: 0.0204 is boundary "
            "0.875), timestep (0 to 1000) or fraction (0 to 1 of the steps).",
        ),
    ]  # fmt: skip


def _default_step() -> int:
    """So that ``step`` starts out as what ``auto`` does with all other defaults."""
    schedule = make_schedule(DEFAULTS.schedule, steps=DEFAULTS.steps, shift=DEFAULTS.shift)
    return count_high(schedule, DEFAULTS.boundary)


def _plan(
    scheduler: str,
    steps: int,
    sigma_shift: float,
    switch: str,
    boundary: float,
    switch_step: int,
    switch_value: float,
    timesteps: str,
    model: Any = None,
) -> RunPlan:
    schedule = schedule_for(scheduler, steps, sigma_shift, timesteps)
    read = read_switch(switch, boundary, switch_step, switch_value)
    # Guidance plays no part here.
    parts = [("high noise", read), ("low noise", read_switch("auto", boundary, 0, 0))]
    stages = [
        WiredStage(name=name, model=model, guidance=Guidance.constant(1), switch=end)
        for name, end in parts
    ]
    plan = plan_run(stages, schedule, sigma_shift)
    told = []
    if scheduler not in OWN_STEPS and schedule.steps != steps:
        told.append(f"{scheduler} has {schedule.steps} different noise levels for {steps} steps")
    if scheduler in OWN_STEPS:
        told.append(f"sigma_shift {sigma_shift:g} does not act on {scheduler}")
    return plan.noted(*told)


class WanExpertsSolver(CheckedNode):
    """A solver as SAMPLER."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsSolver",
            display_name="Wan Solver",
            category=CATEGORY,
            description="Solvers of flow matching for SamplerCustomAdvanced, with our guiders or any "
            "other: the official ones of Wan, Euler, Heun, and LCM for distilled models.",
            search_aliases=["wan", "sampler", "unipc", "dpm++", "ksampler select", "万相"],
            inputs=[
                io.Combo.Input(
                    "sampler_name", options=list(SOLVERS), default=DEFAULTS.solver,
                    tooltip="unipc: the official default. dpm++: the official alternative. euler: for "
                    "Lightning models. heun: two evaluations a step. lcm: adds noise at each step, for "
                    "models distilled to it.",
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )  # fmt: skip

    @classmethod
    def execute(cls, sampler_name: str) -> io.NodeOutput:
        """Look the solver up; raises ValueError for an unknown one."""
        return io.NodeOutput(solver_sampler(sampler_name))
