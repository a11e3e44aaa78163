"""Presets against the published numbers they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from wanexperts.wan.cli import build_parser, generate
from wanexperts.wan.config import I2V_A14B_SAMPLING, T2V_A14B, TINY, SamplingConfig
from wanexperts.wan.experts import count_high
from wanexperts.wan.pipeline import Request
from wanexperts.wan.pipeline.request import make_plan
from wanexperts.wan.presets import PRESETS, get_preset
from wanexperts.wan.schedule import make_schedule

OWN = {"t2v": T2V_A14B.sampling, "i2v": I2V_A14B_SAMPLING, "tiny": TINY.sampling}


def numbers(settings: SamplingConfig) -> tuple[object, ...]:
    return (
        settings.steps, settings.shift, settings.boundary, settings.guidance_high,
        settings.guidance_low, settings.solver, settings.schedule,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "preset", "wanted"),
    [
        # wan/configs of the official repository.
        ("t2v", "official", (40, 12.0, 0.875, 4.0, 3.0, "unipc", "unipc")),
        ("i2v", "official", (40, 5.0, 0.9, 3.5, 3.5, "unipc", "unipc")),
        ("t2v", "20-step", (20, 12.0, 0.875, 4.0, 3.0, "unipc", "unipc")),
        # LightX2V's configs of the 4-step models.
        ("t2v", "lightning", (4, 5.0, 0.875, 1.0, 1.0, "euler", "lightning")),
        ("i2v", "lightning", (4, 5.0, 0.9, 1.0, 1.0, "euler", "lightning")),
        ("t2v", "lightning-motion", (8, 3.0, 0.8, 1.0, 1.0, "euler", "shifted")),
    ],
)
def test_the_numbers_of_a_preset(model: str, preset: str, wanted: tuple[object, ...]) -> None:
    assert numbers(get_preset(preset).settings(OWN[model])) == wanted


def test_official_is_the_models_own_whatever_it_is() -> None:
    own = replace(TINY.sampling, steps=7, negative_prompt="x")
    assert get_preset("official").settings(own) == own


@pytest.mark.parametrize(("name", "high"), [("official", 26), ("20-step", 13), ("lightning", 2)])
def test_steps_of_the_high_noise_expert(name: str, high: int) -> None:
    settings = get_preset(name).settings(T2V_A14B.sampling)
    schedule = make_schedule(settings.schedule, steps=settings.steps, shift=settings.shift)
    assert count_high(schedule, settings.boundary) == high


def test_motion_runs_one_step_before_the_distilled_experts() -> None:
    preset = get_preset("lightning-motion")
    settings = preset.settings(T2V_A14B.sampling)
    schedule = make_schedule(settings.schedule, steps=settings.steps, shift=settings.shift)
    assert preset.motion is not None
    assert preset.motion.guidance == 3.5
    assert count_high(schedule, preset.motion.until / 1000) == 1
    assert count_high(schedule, settings.boundary) == 4


def test_only_motion_has_a_third_phase() -> None:
    assert [name for name, preset in PRESETS.items() if preset.motion] == ["lightning-motion"]


def test_an_unknown_preset_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'fast'; use one of official, 20-step"):
        get_preset("fast")


def requested(*options: str) -> Request:
    """What ``generate`` asks a pipeline of T2V-A14B for."""
    given = build_parser().parse_args(["generate", "--prompt", "x", "--out", "x.mp4", *options])
    return generate.read_request(given, T2V_A14B.sampling)


def test_the_command_line_takes_a_preset_and_single_settings_after_it() -> None:
    assert numbers(requested("--preset", "lightning").sampling) == (
        4, 5.0, 0.875, 1.0, 1.0, "euler", "lightning",
    )  # fmt: skip
    changed = requested("--preset", "20-step", "--steps", "30", "--guidance-low", "2").sampling
    assert (changed.steps, changed.guidance_high, changed.guidance_low) == (30, 4.0, 2.0)
    assert requested().sampling == T2V_A14B.sampling


def test_motion_runs_the_high_noise_expert_without_its_loras_first() -> None:
    plan = make_plan(requested("--preset", "lightning-motion"), 16)
    assert [(phase.expert, phase.loras) for phase in plan.phases] == [
        ("high", 0.0), ("high", 1.0), ("low", 1.0),
    ]  # fmt: skip
    assert [len(plan.run.steps_of(index)) for index in range(3)] == [1, 3, 4]
    names = ["motion", "high-noise expert", "low-noise expert"]
    assert [stage.name for stage in plan.run.stages] == names
    assert [str(phase.guidance) for phase in plan.phases] == ["3.5", "1", "1"]
