"""Inputs that the sampling nodes share."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..wan.config import MotionConfig
from ..wan.experts import count_high
from ..wan.noise import LAYOUTS
from ..wan.schedule import TRAIN_TIMESTEPS, make_schedule
from .checks import RARE, widget
from .host.runs import AUTO, RESUME
from .trajectory import DEFAULTS, SWITCHES

OFFICIAL_GRID = (
    "Sigmas of Wan Sigmas bring their own shift and timesteps. Of other nodes' sigmas, only a whole "
    "official UniPC grid of this shift gets the official whole timesteps; any others get 1000 times the "
    "noise level."
)
MOTION = MotionConfig()
# So that "step" and "timestep" start out as what "auto" does with all other defaults.
SWITCH_STEP = count_high(
    make_schedule(DEFAULTS.schedule, steps=DEFAULTS.steps, shift=DEFAULTS.shift),
    DEFAULTS.boundary,
)
SWITCH_VALUE = TRAIN_TIMESTEPS * DEFAULTS.boundary


def expert_inputs() -> list[Any]:
    """Both MODELs and both conditionings."""
    return [
        io.Model.Input(
            "model_high_noise",
            tooltip="Expert for the noisy first steps, which settle layout and motion; any Wan MODEL.",
        ),
        io.Model.Input(
            "model_low_noise",
            tooltip="Expert for the last steps, which bring detail; any Wan MODEL.",
        ),
        io.Conditioning.Input("positive", tooltip="Encoded prompt, of any text encode node."),
        io.Conditioning.Input(
            "negative",
            tooltip="Encoded negative prompt; an expert whose cfg is 1 does not read it.",
        ),
    ]


def guidance_inputs() -> list[Any]:
    """The scale of each expert."""
    return [
        io.Float.Input(
            "cfg_high_noise", default=DEFAULTS.guidance_high, **widget("cfg_high_noise"),
            tooltip="Guidance of the high-noise expert, 0 to 100: how strictly it follows the prompt. "
            f"Official: {DEFAULTS.guidance_high:g}. 1 skips the negative prompt: half the time, for "
            "distilled models such as Lightning.",
        ),
        io.Float.Input(
            "cfg_low_noise", default=DEFAULTS.guidance_low, **widget("cfg_low_noise"),
            tooltip=f"Guidance of the low-noise expert, as above. Official: {DEFAULTS.guidance_low:g}.",
        ),
    ]  # fmt: skip


def shift_input(tooltip: str) -> Any:
    """The shift; ``tooltip`` says what it means for this node."""
    return io.Float.Input(
        "sigma_shift", default=DEFAULTS.shift, **widget("sigma_shift"),
        tooltip="How long the run stays at high noise, where layout and motion are settled: "
        f"{DEFAULTS.shift:g} is official for Wan2.2 14B text to video, 5 for Lightning, 1 bends nothing. "
        + tooltip,
    )  # fmt: skip


def switch_inputs() -> list[Any]:
    """Where the low-noise expert takes over."""
    return [
        io.Combo.Input(
            "switch", options=SWITCHES, default="auto",
            tooltip="Where the low-noise expert takes over. auto: at the noise level the experts were "
            "trained to divide at; for a MODEL of another loader 0.9 if it takes an image, else 0.875. "
            "boundary: at the noise level below. step: after the number of steps below. snr, timestep, "
            "fraction: see switch_value. Their numbers may be folded away as advanced.",
        ),
        io.Float.Input(
            "boundary", default=DEFAULTS.boundary, **widget("boundary"),
            tooltip="Only for switch = boundary: the lowest noise level of the high-noise expert, 0 to 1. "
            f"Official: {DEFAULTS.boundary:g}.",
        ),
        io.Int.Input(
            "switch_step", default=SWITCH_STEP, **widget("switch_step"),
            tooltip="Only for switch = step: how many of the steps run on the high-noise expert.",
        ),
    ]  # fmt: skip


def more_inputs() -> list[Any]:
    """Other ways to say the same, and the motion phase."""
    return [
        io.Float.Input(
            "switch_value", default=SWITCH_VALUE, **widget("switch_value"), optional=True,
            tooltip="Only for switch = snr (((1 - sigma) / sigma)^2, a ratio: 0.0204 is boundary "
            "0.875), timestep (0 to 1000) or fraction (0 to 1 of the steps).",
        ),
        io.String.Input(
            "cfg_curve_high", default="", optional=True, **RARE,
            tooltip="Guidance of the high-noise expert over the noise level, in place of "
            "cfg_high_noise: sigma:scale pairs such as 1:4, 0.9:3. Empty: cfg_high_noise.",
        ),
        io.String.Input(
            "cfg_curve_low", default="", optional=True, **RARE,
            tooltip="The same for the low-noise expert, in place of cfg_low_noise.",
        ),
        io.Model.Input(
            "model_motion", optional=True,
            tooltip="A third phase before the others: the high-noise expert without its distill LoRA, "
            "which brings back the motion that few steps lose.",
        ),
        io.Float.Input(
            "cfg_motion", default=MOTION.guidance, **widget("cfg_motion"), optional=True,
            tooltip="Only with model_motion: its guidance, 0 to 100; without a distill LoRA it needs more "
            "than 1.",
        ),
        io.Float.Input(
            "motion_until", default=MOTION.until, **widget("motion_until"), optional=True,
            tooltip="Only with model_motion: the lowest timestep it runs at, 0 to 1000.",
        ),
    ]  # fmt: skip


def noise_input() -> Any:
    """How the initial noise is drawn, to be appended."""
    return io.Combo.Input(
        "noise", options=list(LAYOUTS), default=LAYOUTS[0], optional=True,
        **RARE,
        tooltip="How the seed becomes noise. comfy: as every ComfyUI sampler, on the CPU. official: the "
        "numbers that the official code draws on an H100, for the same clip from the same seed.",
    )  # fmt: skip


def resume_input() -> Any:
    """Whether runs go on, to be appended after all others."""
    return io.Combo.Input(
        "resume", options=list(RESUME), default=AUTO, optional=True,
        **RARE,
        tooltip="Runs are kept on disk after each step. auto: the same run goes on where it ended, "
        "also after a crash, and another low-noise stage starts from the high-noise steps that are "
        "done. off: forget what is kept of this run and start anew.",
    )  # fmt: skip
