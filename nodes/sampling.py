"""Sample: the all-in-one sampler and the guider for ComfyUI's own sampling nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..wan.config import T2V_A14B
from ..wan.experts import boundary_at_step, check_boundary, count_high
from ..wan.schedule import SCHEDULES, Schedule, make_schedule
from ..wan.solvers import SOLVERS
from .checks import check_limits, problem, widget
from .host import compat
from .host.guider import ExpertsGuider, RunPlan
from .host.latent import fit_latent, is_ignored, run_guider
from .host.model import check_text_width, same_model, sampling_of
from .host.sampling import foreign_shift, pure_noise, recognise, solver_sampler

if TYPE_CHECKING:
    from torch import Tensor

DEFAULTS = T2V_A14B.sampling
CATEGORY = "WanExperts/sampling"
OFFICIAL_GRID = (
    "Give the shift of the sigmas: only a whole official UniPC grid of this shift gets the official "
    "whole timesteps, any other sigmas get 1000 times the noise level."
)
IGNORED_LATENT = (
    "what is in latent_image is not used: this node starts from pure noise; to work on a clip give it "
    "a noise mask, or use Wan Experts Guider with sigmas that start lower"
)
SWITCHES = ["auto", "boundary", "step"]
# So that "step" starts out as what "auto" does with all other defaults.
SWITCH_STEP = count_high(
    make_schedule(DEFAULTS.schedule, steps=DEFAULTS.steps, shift=DEFAULTS.shift),
    DEFAULTS.boundary,
)


def _experts() -> list[Any]:
    return [
        io.Model.Input(
            "model_high_noise", tooltip="Expert for the noisy first steps; any Wan MODEL."
        ),
        io.Model.Input("model_low_noise", tooltip="Expert for the last steps; any Wan MODEL."),
        io.Conditioning.Input("positive", tooltip="Encoded prompt."),
        io.Conditioning.Input("negative", tooltip="Encoded negative prompt."),
    ]


def _guidance() -> list[Any]:
    return [
        io.Float.Input(
            "cfg_high_noise", default=DEFAULTS.guidance_high, **widget("cfg_high_noise"),
            tooltip="Guidance of the high-noise expert. 1 skips the negative prompt: half the time, "
            "for distilled models.",
        ),
        io.Float.Input(
            "cfg_low_noise", default=DEFAULTS.guidance_low, **widget("cfg_low_noise"),
            tooltip="Guidance of the low-noise expert.",
        ),
    ]  # fmt: skip


def _shift(tooltip: str) -> Any:
    return io.Float.Input(
        "sigma_shift", default=DEFAULTS.shift, **widget("sigma_shift"),
        tooltip="How long the run stays at high noise. 12 is official for Wan2.2 14B text to video. "
        + tooltip,
    )  # fmt: skip


def _switch() -> list[Any]:
    return [
        io.Combo.Input(
            "switch", options=SWITCHES, default="auto",
            tooltip="auto: at the noise level the experts were trained to divide at; for a MODEL of "
            "another loader 0.9 if it takes an image, else 0.875. boundary: at the noise level below. "
            "step: after the number of steps below.",
        ),
        io.Float.Input(
            "boundary", default=DEFAULTS.boundary, **widget("boundary"),
            tooltip="Only for switch = boundary: the lowest noise level of the high-noise expert.",
        ),
        io.Int.Input(
            "switch_step", default=SWITCH_STEP, **widget("switch_step"),
            tooltip="Only for switch = step: how many of the steps run on the high-noise expert.",
        ),
    ]  # fmt: skip


def boundary_for(
    switch: str, boundary: float, switch_step: int, schedule: Schedule, own: float
) -> float:
    """The noise level at which the experts change, for a run over ``schedule``.

    ``own`` is the boundary the experts were trained with.

    Raises:
        ValueError: unknown switch, boundary outside [0, 1] or step outside 0..N.
    """
    _check_switch(switch, boundary)
    if switch == "auto":
        return own
    if switch == "boundary":
        return boundary
    return boundary_at_step(schedule, switch_step)


def describe(plan: RunPlan) -> str:
    """The plan as text: a line of totals, a line per step, then what else should be known."""
    schedule = plan.schedule
    high = plan.high_steps
    lines = [
        f"{schedule.steps} steps, {schedule.name} grid, shift {plan.shift:g}: "
        f"{high} high noise, {schedule.steps - high} low noise (boundary {plan.boundary:.4f})",
        "step   sigma    timestep  expert",
    ]
    for step, (sigma, timestep) in enumerate(
        zip(schedule.sigmas.tolist(), schedule.timesteps.tolist(), strict=False)
    ):
        expert = "high noise" if plan.is_high(sigma) else "low noise"
        lines.append(f"{step + 1:4d}  {sigma:.5f}  {timestep:8.2f}  {expert}")
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def plan_run(
    schedule: Schedule, level: float, shift: float, models: tuple[Any, ...] = ()
) -> RunPlan:
    """The plan of a run over ``schedule`` that changes experts at noise ``level``, with its notes."""
    notes = [foreign_shift(model, shift) for model in models]
    high = count_high(schedule, level)
    # Part of a run may well need one expert only.
    first, last = float(schedule.sigmas[0]), float(schedule.sigmas[-1])
    whole = last == 0 and first >= pure_noise(shift) - 1e-5
    if whole and high in (0, schedule.steps):
        idle, only = ("low", "high") if high else ("high", "low")
        notes.append(
            f"the {idle}-noise expert runs no step, all {schedule.steps} run on the {only}-noise one; "
            "for both use another switch or switch_step, or more steps"
        )
    told = tuple(dict.fromkeys(filter(None, notes)))
    return RunPlan(schedule=schedule, boundary=level, shift=shift, notes=told)


def _check_sources(high: Any, low: Any, positive: Any, negative: Any) -> None:
    for model in (high, low):
        check_text_width(model, [*positive, *negative])
    if same_model(high, low):
        raise ValueError(
            "model_high_noise and model_low_noise are the same MODEL; connect both outputs of "
            "Load Wan Experts"
        )


class WanExpertsSampler(io.ComfyNode):
    """Two experts, one solver, one seed, one trajectory."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsSampler",
            display_name="Sample Wan Experts",
            category=CATEGORY,
            description="Runs both experts as one trajectory: one solver whose history survives the "
            "switch, official schedules and timesteps, and the second expert loaded only when it is due.",
            search_aliases=["wan", "ksampler", "moe", "two experts", "high low noise"],
            inputs=[
                *_experts(),
                io.Latent.Input(
                    "latent_image", tooltip="Empty clip that gives size and length. A clip with a noise "
                    "mask is made anew where the mask is.",
                ),
                io.Int.Input(
                    "noise_seed", default=0, **widget("noise_seed"), control_after_generate=True,
                    tooltip="Seed of the initial noise; drawn on the CPU, the same on every machine.",
                ),
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, **widget("steps"),
                    tooltip="Steps of both experts together. 40 is official, 20 is usual.",
                ),
                *_guidance(),
                io.Combo.Input(
                    "sampler_name", options=list(SOLVERS), default=DEFAULTS.solver,
                    tooltip="Solver. unipc is the official default; dpm++ the official alternative.",
                ),
                io.Combo.Input(
                    "scheduler", options=list(SCHEDULES), default=DEFAULTS.schedule,
                    tooltip="Noise levels: the official grid of each solver, or the plain shifted one.",
                ),
                _shift("It replaces the shift of ModelSamplingSD3."),
                *_switch(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clip, for a decode node."),
                io.String.Output(display_name="plan", tooltip="Which step ran on which expert."),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(
        cls,
        steps: int | None = None,
        sampler_name: str | None = None,
        scheduler: str | None = None,
        sigma_shift: float | None = None,
        switch: str | None = None,
        boundary: float | None = None,
        switch_step: int | None = None,
    ) -> bool | str:
        """Everything the numbers alone can tell, before anything is loaded."""
        given = (steps, sampler_name, scheduler, sigma_shift, switch, boundary, switch_step)
        return problem(_plan, *given)

    @classmethod
    def execute(
        cls,
        model_high_noise: Any,
        model_low_noise: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        noise_seed: int,
        steps: int,
        cfg_high_noise: float,
        cfg_low_noise: float,
        sampler_name: str,
        scheduler: str,
        sigma_shift: float,
        switch: str,
        boundary: float,
        switch_step: int,
    ) -> io.NodeOutput:
        """Sample; the latents stay raw (not normalised), as on every LATENT socket."""
        models = model_high_noise, model_low_noise
        _check_sources(*models, positive, negative)
        check_limits(cfg_high_noise=cfg_high_noise, cfg_low_noise=cfg_low_noise)
        samples = fit_latent(model_high_noise, latent_image)
        plan = _plan(
            steps, sampler_name, scheduler, sigma_shift, switch, boundary, switch_step, models
        )
        if is_ignored(latent_image):
            plan = replace(plan, notes=(*plan.notes, IGNORED_LATENT))
        guider = ExpertsGuider(*models, cfg_high=cfg_high_noise, cfg_low=cfg_low_noise)
        guider.set_conds(positive, negative)
        guider.set_plan(lambda _: plan)
        sampler = solver_sampler(sampler_name)
        out = run_guider(guider, sampler, plan.schedule.sigmas, latent_image, samples, noise_seed)
        return io.NodeOutput(out, describe(plan))


def _plan(
    steps: int,
    sampler_name: str,
    scheduler: str,
    sigma_shift: float,
    switch: str,
    boundary: float,
    switch_step: int,
    models: tuple[Any, ...] = (),
) -> RunPlan:
    check_limits(steps=steps, sigma_shift=sigma_shift, switch_step=switch_step)
    if sampler_name not in SOLVERS:
        raise ValueError(f"unknown sampler {sampler_name!r}; use one of {', '.join(SOLVERS)}")
    schedule = make_schedule(scheduler, steps=steps, shift=sigma_shift)
    own = sampling_of(models[0]).boundary if models else DEFAULTS.boundary
    level = boundary_for(switch, boundary, switch_step, schedule, own)
    return plan_run(schedule, level, sigma_shift, models)


class WanExpertsGuider(io.ComfyNode):
    """Both experts as a GUIDER for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return compat.schema(
            node_id="WanExpertsGuider",
            display_name="Wan Experts Guider",
            category=CATEGORY,
            description="Both experts behind one GUIDER, for SamplerCustomAdvanced with any sampler "
            "and any sigmas. The noise level of each call decides the expert.",
            search_aliases=["wan", "cfg guider", "dual model", "moe"],
            inputs=[*_experts(), *_guidance(), _shift(OFFICIAL_GRID), *_switch()],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(
        cls, switch: str | None = None, boundary: float | None = None
    ) -> bool | str:
        """The step is checked when the sigmas are known."""
        return problem(_check_switch, switch, boundary)

    @classmethod
    def execute(
        cls,
        model_high_noise: Any,
        model_low_noise: Any,
        positive: Any,
        negative: Any,
        cfg_high_noise: float,
        cfg_low_noise: float,
        sigma_shift: float,
        switch: str,
        boundary: float,
        switch_step: int,
    ) -> io.NodeOutput:
        """Build the guider; nothing is loaded before sampling."""
        models = model_high_noise, model_low_noise
        _check_sources(*models, positive, negative)
        check_limits(
            cfg_high_noise=cfg_high_noise,
            cfg_low_noise=cfg_low_noise,
            sigma_shift=sigma_shift,
            switch_step=switch_step,
        )
        _check_switch(switch, boundary)
        own = sampling_of(model_high_noise).boundary

        def plan_for(sigmas: Tensor) -> RunPlan:
            schedule = recognise(sigmas, sigma_shift)
            level = boundary_for(switch, boundary, switch_step, schedule, own)
            return plan_run(schedule, level, sigma_shift, models)

        guider = ExpertsGuider(*models, cfg_high=cfg_high_noise, cfg_low=cfg_low_noise)
        guider.set_conds(positive, negative)
        guider.set_plan(plan_for)
        return io.NodeOutput(guider)


def _check_switch(switch: str, boundary: float) -> None:
    if switch not in SWITCHES:
        raise ValueError(f"switch={switch!r} is not one of {', '.join(SWITCHES)}; use auto")
    if switch == "boundary":
        check_boundary(boundary)
    check_limits(boundary=boundary)
