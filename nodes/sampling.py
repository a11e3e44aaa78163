"""Sample: the all-in-one sampler and the guider for ComfyUI's own sampling nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..wan.config import T2V_A14B
from ..wan.experts import boundary_at_step, check_boundary, is_high
from ..wan.schedule import SCHEDULES, Schedule, make_schedule
from ..wan.solvers import SOLVERS
from . import compat
from .host.guider import ExpertsGuider, RunPlan
from .host.latent import fit_latent, run_guider
from .host.model import same_model, sampling_of
from .host.sampling import recognise, solver_sampler

DEFAULTS = T2V_A14B.sampling
CATEGORY = "WanExperts/sampling"
SWITCHES = ["auto", "boundary", "step"]
MAX_STEPS = 1000


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
            "cfg_high_noise", default=DEFAULTS.guidance_high, min=0.0, max=100.0, step=0.1,
            tooltip="Guidance of the high-noise expert. 1 skips the negative prompt: half the time, "
            "for distilled models.",
        ),
        io.Float.Input(
            "cfg_low_noise", default=DEFAULTS.guidance_low, min=0.0, max=100.0, step=0.1,
            tooltip="Guidance of the low-noise expert.",
        ),
    ]  # fmt: skip


def _shift() -> Any:
    return io.Float.Input(
        "sigma_shift", default=DEFAULTS.shift, min=0.01, max=100.0, step=0.01,
        tooltip="How long the run stays at high noise. 12 is official for Wan2.2 14B text to video.",
    )  # fmt: skip


def _switch() -> list[Any]:
    return [
        io.Combo.Input(
            "switch", options=SWITCHES, default="auto",
            tooltip="auto: at the noise level the experts were trained to divide at. boundary: at the "
            "noise level below. step: after the number of steps below.",
        ),
        io.Float.Input(
            "boundary", default=DEFAULTS.boundary, min=0.0, max=1.0, step=0.001,
            tooltip="Only for switch = boundary: the lowest noise level of the high-noise expert.",
        ),
        io.Int.Input(
            "switch_step", default=DEFAULTS.steps // 2, min=0, max=MAX_STEPS,
            tooltip="Only for switch = step: how many steps the high-noise expert runs.",
        ),
    ]  # fmt: skip


def boundary_for(
    switch: str, boundary: float, switch_step: int, sigmas: Tensor | None, own: float
) -> float:
    """The noise level at which the experts change, for a run over ``sigmas`` (N+1,).

    ``own`` is the boundary the experts were trained with. ``sigmas`` is only read for "step".

    Raises:
        ValueError: unknown switch, boundary outside [0, 1] or step outside 0..N.
    """
    if switch == "auto":
        return own
    if switch == "boundary":
        check_boundary(boundary)
        return boundary
    if switch == "step" and sigmas is not None:
        return boundary_at_step(sigmas, switch_step)
    raise ValueError(f"switch={switch!r} is not one of {', '.join(SWITCHES)}; use auto")


def describe(plan: RunPlan) -> str:
    """The plan as text: one line of totals, then one line per step."""
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
        expert = "high noise" if is_high(sigma, plan.boundary) else "low noise"
        lines.append(f"{step + 1:4d}  {sigma:.5f}  {timestep:8.2f}  {expert}")
    return "\n".join(lines)


def _check_models(high: Any, low: Any) -> None:
    if same_model(high, low):
        raise ValueError(
            "model_high_noise and model_low_noise are the same MODEL; connect both outputs of "
            "Load Wan Experts"
        )


def _problem(check: Callable[[], Any]) -> bool | str:
    try:
        check()
    except ValueError as error:
        return str(error)
    return True


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
                io.Latent.Input("latent_image", tooltip="Empty clip that gives size and length."),
                io.Int.Input(
                    "noise_seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                    tooltip="Seed of the initial noise; drawn on the CPU, the same on every machine.",
                ),
                io.Int.Input(
                    "steps", default=DEFAULTS.steps, min=1, max=MAX_STEPS,
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
                _shift(),
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
        given = {
            "steps": steps, "sampler_name": sampler_name, "scheduler": scheduler,
            "sigma_shift": sigma_shift, "switch": switch, "boundary": boundary,
            "switch_step": switch_step,
        }  # fmt: skip
        if None in given.values():
            return True
        return _problem(lambda: _plan(**given))

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
        _check_models(model_high_noise, model_low_noise)
        samples = fit_latent(model_high_noise, latent_image)
        own = sampling_of(model_high_noise).boundary
        plan = _plan(
            steps, sampler_name, scheduler, sigma_shift, switch, boundary, switch_step, own
        )
        guider = ExpertsGuider(
            model_high_noise, model_low_noise, cfg_high=cfg_high_noise, cfg_low=cfg_low_noise
        )
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
    own_boundary: float = DEFAULTS.boundary,
) -> RunPlan:
    if sampler_name not in SOLVERS:
        raise ValueError(f"unknown sampler {sampler_name!r}; use one of {', '.join(SOLVERS)}")
    schedule = make_schedule(scheduler, steps=steps, shift=sigma_shift)
    level = boundary_for(switch, boundary, switch_step, schedule.sigmas, own_boundary)
    return RunPlan(schedule=schedule, boundary=level, shift=sigma_shift)


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
            inputs=[*_experts(), *_guidance(), _shift(), *_switch()],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def validate_inputs(
        cls, switch: str | None = None, boundary: float | None = None
    ) -> bool | str:
        """The step is checked when the sigmas are known."""
        if switch is None or boundary is None or switch == "step":
            return True
        return _problem(lambda: boundary_for(switch, boundary, 0, None, DEFAULTS.boundary))

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
        _check_models(model_high_noise, model_low_noise)
        own = sampling_of(model_high_noise).boundary

        def plan_for(sigmas: Tensor) -> RunPlan:
            schedule: Schedule = recognise(sigmas, sigma_shift)
            level = boundary_for(switch, boundary, switch_step, schedule.sigmas, own)
            return RunPlan(schedule=schedule, boundary=level, shift=sigma_shift)

        guider = ExpertsGuider(
            model_high_noise, model_low_noise, cfg_high=cfg_high_noise, cfg_low=cfg_low_noise
        )
        guider.set_conds(positive, negative)
        guider.set_plan(plan_for)
        return io.NodeOutput(guider)
