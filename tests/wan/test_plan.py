"""The plan of a run: every step has one stage, and the plan says which."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.experts import ABOVE_ALL, Stage, count_high, route
from wanexperts.wan.guidance import Guidance
from wanexperts.wan.plan import RunPlan, StageSpec, describe
from wanexperts.wan.schedule import Schedule, make_schedule


def plan(*boundaries: float, schedule: Schedule | None = None) -> RunPlan:
    stages = tuple(
        StageSpec(name=str(index), boundary=boundary, guidance=Guidance.constant(1.0))
        for index, boundary in enumerate(boundaries)
    )
    grid = schedule or make_schedule("unipc", steps=40, shift=12.0)
    return RunPlan(schedule=grid, shift=12.0, stages=stages)


def test_two_experts_take_the_official_steps() -> None:
    run = plan(0.875, 0.0)
    assert [run.steps_of(0), run.steps_of(1)] == [range(26), range(26, 40)]
    assert len(run.steps_of(0)) == count_high(run.schedule, 0.875)


@pytest.mark.parametrize(
    "boundaries",
    [(0.0,), (0.875, 0.0), (0.965, 0.8, 0.0), (0.965, 0.965, 0.0), (ABOVE_ALL, 0.5, 0.0), (0.0, 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["unipc", "dpm++", "shifted"])
def test_the_plan_is_what_the_router_does(name: str, boundaries: tuple[float, ...]) -> None:
    """``route`` is what runs in the library; the plan must say the same, step by step."""
    schedule = make_schedule(name, steps=7, shift=5.0)
    run, ran = plan(*boundaries, schedule=schedule), []
    stages = [
        Stage(name=str(i), boundary=level, velocity=lambda x, _, i=i: ran.append(i) or x)
        for i, level in enumerate(boundaries)
    ]
    velocity = route(stages, schedule)
    for sigma in schedule.sigmas[:-1].tolist():
        velocity(torch.zeros(1), sigma)
        assert run.stage_of(sigma) == ran[-1]
    assert [run.stage_at(step) for step in range(7)] == ran
    told = [step for index in range(len(boundaries)) for step in run.steps_of(index)]
    assert told == list(range(7))
    assert all(ran[step] == i for i in range(len(boundaries)) for step in run.steps_of(i))


def test_a_tie_belongs_to_the_earlier_stage() -> None:
    levels = torch.tensor([1.0, 0.9, 0.5, 0.0])
    schedule = Schedule(name="ties", sigmas=levels, timesteps=levels[:-1].double() * 1000)
    run = plan(0.9, 0.5, 0.0, schedule=schedule)
    assert [run.stage_at(step) for step in range(3)] == [0, 0, 1]
    assert run.stage_of(0.9) == 0
    assert run.steps_of(2) == range(3, 3), "no step is left for the last stage"


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        ((), "do not reach noise level 0; give the last stage boundary 0"),
        ((0.9, 0.5), "do not reach noise level 0"),
        ((0.5, 0.9, 0.0), "are not in order; put the high-noise stage first"),
        ((875.0, 0.0), r"boundary=875 is not a noise level in \[0, 1\]; use 0.875"),
    ],
)
def test_bad_stages_are_refused(boundaries: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(*boundaries)


def test_the_text_says_all_there_is_to_know() -> None:
    stages = (
        StageSpec(name="high", boundary=0.875, guidance=Guidance(((1.0, 4.0), (0.9, 2.0)))),
        StageSpec(name="low", boundary=0.0, guidance=Guidance.constant(3.5)),
    )
    schedule = make_schedule("dpm++", steps=4, shift=5.0)
    run = RunPlan(schedule=schedule, shift=5.0, stages=stages, notes=("one thing",))
    assert describe(run).splitlines() == [
        "4 steps, dpm++ grid, shift 5: 2 high, 2 low",
        "high until boundary 0.8750, SNR 0.02041 (-16.9 dB), timestep 875.0, fraction 0.500, "
        "step 2 of 4",
        "step   sigma    timestep    cfg  stage",
        "   1  1.00000   1000.00      4  high",
        "   2  0.93750    937.00   2.75  high",
        "   3  0.83333    833.00    3.5  low",
        "   4  0.62500    625.00    3.5  low",
        "note: one thing",
    ]


def test_a_stage_without_steps_is_told_for_whole_runs_only() -> None:
    whole = plan(ABOVE_ALL, 0.0)
    assert whole.idle() == (
        f"the {whole.stages[0].name} stage runs none of the {whole.schedule.steps} steps; "
        "for all stages use another switch or more steps",
    )
    sigmas = whole.schedule.sigmas[2:]
    rest = Schedule(name="part", sigmas=sigmas, timesteps=whole.schedule.timesteps[2:])
    assert plan(ABOVE_ALL, 0.0, schedule=rest).idle() == ()
    assert plan(0.875, 0.0).idle() == ()
