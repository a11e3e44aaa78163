"""What the sampling nodes share: stages as they are wired, the plan of their run, their guider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..wan.config import T2V_A14B
from ..wan.guidance import Guidance, parse_guidance
from ..wan.plan import RunPlan, StageSpec
from ..wan.switch import Switch
from .checks import check_limits
from .host.guider import ExpertsGuider
from .host.model import check_text_width, sampling_of
from .host.runs import AUTO
from .host.sampling import foreign_shift, recognise, shift_behind
from .host.stages import check_one_format

if TYPE_CHECKING:
    from torch import Tensor

    from ..wan.schedule import Schedule

DEFAULTS = T2V_A14B.sampling
CATEGORY = "WanExperts/sampling"
SWITCHES = ["auto", "boundary", "step", "snr", "timestep", "fraction"]
"""The kinds of :class:`Switch`, in the order in which the widget got them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WiredStage:
    """One stage as it comes into a node.

    Attributes:
        name: for the plan and the log.
        model: its MODEL; None while only numbers are checked.
        guidance: its scale over the noise level.
        switch: where it ends; the last stage of a run has no use for it.
        origin: what made the MODEL, see :func:`~.host.graph_key.made_by`; None where it is not known.
    """

    name: str
    model: Any
    guidance: Guidance
    switch: Switch
    origin: str | None = None

    def spec(self, schedule: Schedule, *, last: bool) -> StageSpec:
        """This stage in a run over ``schedule``."""
        own = DEFAULTS.boundary if self.model is None else sampling_of(self.model).boundary
        boundary = 0.0 if last else self.switch.boundary(schedule, own)
        return StageSpec(name=self.name, boundary=boundary, guidance=self.guidance)


def read_switch(kind: str, boundary: float, step: int, value: float) -> Switch:
    """The switch that the widgets ``switch``, ``boundary``, ``switch_step`` and ``switch_value`` say.

    Raises:
        ValueError: an unknown kind, or a number out of its range.
    """
    switch = Switch(kind, {"boundary": boundary, "step": step}.get(kind, value))
    check_limits(boundary=boundary, switch_step=step, switch_value=value)
    return switch


def read_guidance(name: str, scale: float, curve: str = "") -> Guidance:
    """The ``curve`` if one is written, else the constant ``scale`` of the widget ``name``.

    Raises:
        ValueError: the curve cannot be read, or a scale is outside the limits of ``name``.
    """
    guidance = parse_guidance(curve) if curve.strip() else Guidance.constant(scale)
    for _, value in guidance.points:
        check_limits(**{name: value})
    return guidance


def plan_run(stages: Sequence[WiredStage], schedule: Schedule, shift: float) -> RunPlan:
    """The plan of a run of ``stages`` over ``schedule``, with what should be known of it.

    Raises:
        ValueError: the stages do not follow each other from noise to clean.
    """
    specs = tuple(
        stage.spec(schedule, last=number == len(stages))
        for number, stage in enumerate(stages, start=1)
    )
    plan = RunPlan(schedule=schedule, shift=shift, stages=specs)
    notes = [foreign_shift(stage.model, shift) for stage in stages]
    if stages[-1].switch.kind != "auto":
        notes.append(
            f"until of the {specs[-1].name} stage is not used: the last one runs to the end"
        )
    return plan.noted(*filter(None, notes), *plan.idle())


def make_guider(
    stages: Sequence[WiredStage],
    positive: list[Any],
    negative: list[Any],
    shift: float,
    *,
    resume: str = AUTO,
) -> ExpertsGuider:
    """A GUIDER for ``stages``, which plans each run from the sigmas it is given.

    Raises:
        ValueError: a MODEL cannot read the conditionings, or works on other latents than the first.
    """

    def plan_for(sigmas: Tensor) -> RunPlan:
        behind = shift_behind(sigmas, shift)
        plan = plan_run(stages, recognise(sigmas, behind), behind)
        if behind == shift:
            return plan
        return plan.noted(f"the sigmas were made with shift {behind:g}; sigma_shift is not used")

    models = [stage.model for stage in stages]
    check_one_format(models)
    for model in models:
        check_text_width(model, [*positive, *negative])
    guider = ExpertsGuider(models)
    guider.set_conds(positive, negative)
    guider.set_plan(plan_for)
    guider.set_keeping([stage.origin for stage in stages], resume)
    return guider
