"""Sample: the all-in-one sampler and the guider for ComfyUI's own sampling nodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from comfy_api.latest import io, ui

from ..wan.config import MotionConfig
from ..wan.experts import check_order
from ..wan.guidance import Guidance
from ..wan.noise import LAYOUTS
from ..wan.plan import RunPlan
from ..wan.presets import AS_BELOW
from ..wan.schedule import SCHEDULES, make_schedule
from ..wan.solvers import SOLVERS
from ..wan.switch import Switch
from .checks import CheckedNode, check_limits, unless_linked, widget
from .host import compat
from .host.forecast import plan_text
from .host.graph_key import made_by
from .host.latent import fit_latent, is_ignored, run_guider
from .host.manifest import carry
from .host.model import same_model
from .host.runs import AUTO
from .host.sampling import solver_sampler
from .inputs import (
    MOTION,
    OFFICIAL_GRID,
    SWITCH_VALUE,
    expert_inputs,
    guidance_inputs,
    more_inputs,
    noise_input,
    resume_input,
    shift_input,
    switch_inputs,
)
from .preset import RunSettings, check_preset, preset_input, preset_settings
from .trajectory import (
    CATEGORY,
    DEFAULTS,
    WiredStage,
    make_guider,
    plan_run,
    read_guidance,
    read_switch,
)

IGNORED_LATENT = (
    "what is in latent_image is not used: this node starts from pure noise; to work on a clip give it "
    "a noise mask, or use Wan Experts Guider with sigmas that start lower"
)
UNLINKED = False
"""Stands for a MODEL that is not connected, where a connected one is None (see ``unless_linked``)."""
INPUTS = {
    "motion": "model_motion",
    "high noise": "model_high_noise",
    "low noise": "model_low_noise",
}
"""Stage -> the input of its MODEL."""


def _stages(
    high: Any, low: Any, guidance: tuple[Guidance, Guidance], switch: Switch
) -> list[WiredStage]:
    """The two experts as stages; without MODELs where only numbers are checked."""
    return [
        WiredStage(name="high noise", model=high, guidance=guidance[0], switch=switch),
        WiredStage(name="low noise", model=low, guidance=guidance[1], switch=Switch()),
    ]


def _motion(model: Any, cfg: float, until: float) -> WiredStage:
    check_limits(cfg_motion=cfg, motion_until=until)
    guidance, switch = Guidance.constant(cfg), Switch("timestep", until)
    return WiredStage(name="motion", model=model, guidance=guidance, switch=switch)


def _traced(hidden: Any, stages: list[WiredStage]) -> list[WiredStage]:
    """The stages with what made their MODELs."""
    return [replace(stage, origin=made_by(hidden, INPUTS[stage.name])) for stage in stages]


def _guidances(
    cfg_high: float, cfg_low: float, curve_high: str, curve_low: str
) -> tuple[Guidance, Guidance]:
    return (
        read_guidance("cfg_high_noise", cfg_high, curve_high),
        read_guidance("cfg_low_noise", cfg_low, curve_low),
    )


def _check_different(high: Any, low: Any) -> None:
    if same_model(high, low):
        raise ValueError(
            "model_high_noise and model_low_noise are the same MODEL; connect both outputs of "
            "Load Wan Experts"
        )


def _plan(
    steps: int, sampler_name: str, scheduler: str, sigma_shift: float, stages: list[WiredStage]
) -> RunPlan:
    check_limits(steps=steps, sigma_shift=sigma_shift)
    if sampler_name not in SOLVERS:
        raise ValueError(f"unknown sampler {sampler_name!r}; use one of {', '.join(SOLVERS)}")
    schedule = make_schedule(scheduler, steps=steps, shift=sigma_shift)
    return plan_run(stages, schedule, sigma_shift)


class WanExpertsSampler(CheckedNode):
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
            search_aliases=["wan", "ksampler", "moe", "two experts", "high low noise", "万相"],
            inputs=[
                *expert_inputs(),
                io.Latent.Input(
                    "latent_image", tooltip="Empty clip that gives size and length. A clip with a noise "
                    "mask is made anew where the mask is.",
                ),
                io.Int.Input(
                    "noise_seed", default=0, **widget("noise_seed"), control_after_generate=True,
                    tooltip="Seed of the initial noise: the same seed gives the same clip. Drawn on the CPU, the "
                    "same on every machine.",
                ),
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, **widget("steps"),
                    tooltip="Steps of both experts together, 1 to 1000. 40 is official, 20 is usual, 4 with "
                    "Lightning.",
                ),
                *guidance_inputs(),
                io.Combo.Input(
                    "sampler_name", options=list(SOLVERS), default=DEFAULTS.solver,
                    tooltip="Solver. unipc: the official default. dpm++: the official alternative. euler: for "
                    "Lightning models. heun: two evaluations a step. lcm: adds noise at each step, for "
                    "models distilled to it.",
                ),
                io.Combo.Input(
                    "scheduler", options=list(SCHEDULES), default=DEFAULTS.schedule,
                    tooltip="Noise levels. unipc, dpm++: the official grid of each solver. shifted: the plain "
                    "one. lightning: 4 steps of Lightning models. lcm: 3 steps of FastWan models.",
                ),
                shift_input("It replaces the shift of ModelSamplingSD3."),
                *switch_inputs(),
                *more_inputs(),
                preset_input(),
                noise_input(),
                resume_input(),
            ],
            hidden=[io.Hidden.dynprompt],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The clip, for a decode node."),
                io.String.Output(
                    display_name="plan",
                    tooltip="Which step ran on which expert, and what the run takes.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def check_inputs(
        cls,
        steps: int | None = None,
        sampler_name: str | None = None,
        scheduler: str | None = None,
        sigma_shift: float | None = None,
        switch: str | None = None,
        boundary: float | None = None,
        switch_step: int | None = None,
        switch_value: float | None = SWITCH_VALUE,
        cfg_curve_high: str | None = "",
        cfg_curve_low: str | None = "",
        model_motion: Any = UNLINKED,
        motion_until: float | None = MOTION.until,
        preset: str | None = AS_BELOW,
        **_: Any,
    ) -> None:
        """Everything the numbers alone can tell, before anything is loaded."""
        if preset != AS_BELOW:
            unless_linked(check_preset, preset, model_motion is None)
            return
        unless_linked(_guidances, 1.0, 1.0, cfg_curve_high, cfg_curve_low)
        run = (steps, sampler_name, scheduler, sigma_shift)
        place = (switch, boundary, switch_step, switch_value)
        motion = (model_motion is None, motion_until)
        unless_linked(_check_run, *run, *place, *motion)

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
        switch_value: float = SWITCH_VALUE,
        cfg_curve_high: str = "",
        cfg_curve_low: str = "",
        model_motion: Any = None,
        cfg_motion: float = MOTION.guidance,
        motion_until: float = MOTION.until,
        preset: str = AS_BELOW,
        noise: str = LAYOUTS[0],
        resume: str = AUTO,
    ) -> io.NodeOutput:
        """Sample; the latents stay raw (not normalised), as on every LATENT socket."""
        _check_different(model_high_noise, model_low_noise)
        if preset == AS_BELOW:
            run = RunSettings(
                steps=steps,
                solver=sampler_name,
                schedule=scheduler,
                shift=sigma_shift,
                guidance=_guidances(cfg_high_noise, cfg_low_noise, cfg_curve_high, cfg_curve_low),
                switch=read_switch(switch, boundary, switch_step, switch_value),
                motion=MotionConfig(until=motion_until, guidance=cfg_motion),
            )
        else:
            has_motion = model_motion is not None
            run = preset_settings(preset, model_high_noise, has_motion=has_motion)
        stages = _stages(model_high_noise, model_low_noise, run.guidance, run.switch)
        if model_motion is not None:
            stages.insert(0, _motion(model_motion, run.motion.guidance, run.motion.until))
        stages = _traced(cls.hidden, stages)
        guider = make_guider(stages, positive, negative, run.shift, resume=resume)
        samples = fit_latent(model_high_noise, latent_image)
        plan = _plan(run.steps, run.solver, run.schedule, run.shift, stages).noted(*run.notes)
        if is_ignored(latent_image):
            plan = plan.noted(IGNORED_LATENT)
        guider.set_plan(lambda _: plan.noted(*guider.told))
        sampler, sigmas = solver_sampler(run.solver), plan.schedule.sigmas
        out = run_guider(guider, sampler, sigmas, latent_image, samples, noise_seed, noise)
        told = plan_text(guider, sampler, sigmas, samples)
        return io.NodeOutput(carry(out), told, ui=ui.PreviewText(told))


def _check_run(
    steps: int,
    sampler_name: str,
    scheduler: str,
    sigma_shift: float,
    switch: str,
    boundary: float,
    switch_step: int,
    switch_value: float,
    has_motion: bool,
    motion_until: float,
) -> None:
    place, scale = read_switch(switch, boundary, switch_step, switch_value), Guidance.constant(1.0)
    stages = _stages(None, None, (scale, scale), place)
    motion = _motion(None, MOTION.guidance, motion_until)
    _plan(steps, sampler_name, scheduler, sigma_shift, [motion, *stages] if has_motion else stages)


def _check_motion(until: float, switch: str, boundary: float, switch_value: float) -> None:
    """Whether motion ends before the switch, where the numbers alone say it."""
    motion = _motion(None, MOTION.guidance, until).switch
    ends = [each.level for each in (motion, read_switch(switch, boundary, 0, switch_value))]
    if None not in ends:
        check_order([*ends, 0.0])


class WanExpertsGuider(CheckedNode):
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
            search_aliases=["wan", "cfg guider", "dual model", "moe", "万相"],
            inputs=[
                *expert_inputs(),
                *guidance_inputs(),
                shift_input(OFFICIAL_GRID),
                *switch_inputs(),
                *more_inputs(),
                resume_input(),
            ],
            hidden=[io.Hidden.dynprompt],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def check_inputs(
        cls,
        switch: str | None = None,
        boundary: float | None = None,
        switch_value: float | None = SWITCH_VALUE,
        cfg_curve_high: str | None = "",
        cfg_curve_low: str | None = "",
        model_motion: Any = UNLINKED,
        motion_until: float | None = MOTION.until,
        **_: Any,
    ) -> None:
        """What the experts or the sigmas decide is checked when they are known."""
        unless_linked(_guidances, 1.0, 1.0, cfg_curve_high, cfg_curve_low)
        unless_linked(read_switch, switch, boundary, 0, switch_value)
        if model_motion is None:
            unless_linked(_check_motion, motion_until, switch, boundary, switch_value)

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
        switch_value: float = SWITCH_VALUE,
        cfg_curve_high: str = "",
        cfg_curve_low: str = "",
        model_motion: Any = None,
        cfg_motion: float = MOTION.guidance,
        motion_until: float = MOTION.until,
        resume: str = AUTO,
    ) -> io.NodeOutput:
        """Build the guider; nothing is loaded before sampling."""
        _check_different(model_high_noise, model_low_noise)
        check_limits(sigma_shift=sigma_shift)
        guidance = _guidances(cfg_high_noise, cfg_low_noise, cfg_curve_high, cfg_curve_low)
        place = read_switch(switch, boundary, switch_step, switch_value)
        stages = _stages(model_high_noise, model_low_noise, guidance, place)
        if model_motion is not None:
            stages.insert(0, _motion(model_motion, cfg_motion, motion_until))
        stages = _traced(cls.hidden, stages)
        return io.NodeOutput(make_guider(stages, positive, negative, sigma_shift, resume=resume))
