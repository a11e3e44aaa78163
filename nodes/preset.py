"""Presets on the sampler: one widget that sets the numbers of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_api.latest import io

from ..wan.config import MotionConfig
from ..wan.guidance import Guidance
from ..wan.presets import AS_BELOW, PRESETS, Preset, get_preset
from ..wan.switch import Switch
from .host.model import sampling_of


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """The numbers of a run, from widgets or from a preset.

    Attributes:
        guidance: of the high-noise and of the low-noise expert.
        motion: of the phase before both, where it has a MODEL.
        notes: for the plan.
    """

    steps: int
    solver: str
    schedule: str
    shift: float
    guidance: tuple[Guidance, Guidance]
    switch: Switch
    motion: MotionConfig
    notes: tuple[str, ...] = ()


def preset_input() -> Any:
    """The widget, to be appended after all others."""
    told = " ".join(f"{name}: {preset.told}." for name, preset in PRESETS.items())
    return io.Combo.Input(
        "preset", options=[AS_BELOW, *PRESETS], default=AS_BELOW, optional=True,
        tooltip=f"{AS_BELOW}: the other widgets decide. Any other sets steps, cfg, sampler, scheduler, "
        f"shift and switch for this model, and the plan says so. {told}",
    )  # fmt: skip


def check_preset(name: str, has_motion: bool) -> Preset:
    """The preset ``name``, for a run that has a MODEL for motion or has none.

    Raises:
        ValueError: an unknown preset, or one whose first phase has no MODEL.
    """
    preset = get_preset(name)
    if preset.motion is not None and not has_motion:
        raise ValueError(
            f"preset {name} has a phase of its own for motion; connect the high-noise expert without "
            "its Lightning LoRA to model_motion, or use preset lightning"
        )
    if preset.motion is None and has_motion:
        raise ValueError(
            f"preset {name} has no phase for model_motion; disconnect it or use preset "
            "lightning-motion"
        )
    return preset


def preset_settings(name: str, model: Any, *, has_motion: bool) -> RunSettings:
    """What the preset ``name`` means for a MODEL; ValueError as :func:`check_preset`."""
    preset = check_preset(name, has_motion)
    settings = preset.settings(sampling_of(model))
    scales = settings.guidance_high, settings.guidance_low
    return RunSettings(
        steps=settings.steps,
        solver=settings.solver,
        schedule=settings.schedule,
        shift=settings.shift,
        guidance=(Guidance.constant(scales[0]), Guidance.constant(scales[1])),
        switch=Switch("boundary", settings.boundary),
        motion=preset.motion or MotionConfig(),
        notes=(f"the numbers are those of preset {name} ({preset.told}), not of the widgets",),
    )
