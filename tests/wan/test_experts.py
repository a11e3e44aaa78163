"""The boundary: one rule, the same counts as the official schedules, and one switch per run."""

from __future__ import annotations

import math

import pytest
import torch
from wanexperts.wan import experts as E
from wanexperts.wan.schedule import make_schedule

STEPS = (4, 6, 8, 10, 20, 30, 40, 50)

# Steps run by the high-noise expert, for STEPS.
UNIPC = {
    (0.875, 3.0): (2, 2, 3, 3, 6, 9, 12, 15),
    (0.875, 5.0): (2, 3, 4, 5, 9, 13, 17, 21),
    (0.875, 8.0): (3, 4, 5, 6, 11, 16, 22, 27),
    (0.875, 12.0): (3, 4, 6, 7, 13, 19, 26, 32),
    (0.9, 3.0): (1, 2, 2, 3, 5, 8, 10, 13),
    (0.9, 5.0): (2, 3, 3, 4, 8, 11, 15, 18),
    (0.9, 8.0): (2, 3, 4, 5, 10, 15, 19, 24),
    (0.9, 12.0): (3, 4, 5, 6, 12, 18, 23, 29),
}
# Grids that start at 1 can hit the boundary exactly, and ties are high: shift 8 / 0.875 at 30 steps,
# shift 3 / 0.9 at every multiple of 4.
DPMPP = {
    **UNIPC,
    (0.875, 8.0): (3, 4, 5, 6, 11, 17, 22, 27),
    (0.9, 3.0): (2, 2, 3, 3, 6, 8, 11, 13),
}
# At shift 3 / 0.875 every multiple of 10 is a tie too, which float64 rounds to 0.8749999999999999. The
# official DPM++ truncates that to 874 and runs low, so ours does; on the plain grid it stays a tie.
SHIFTED = {**DPMPP, (0.875, 3.0): (2, 2, 3, 4, 7, 10, 13, 16)}
COUNTS = {"unipc": UNIPC, "dpm++": DPMPP, "shifted": SHIFTED}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize(("boundary", "shift"), UNIPC)
def test_high_noise_step_counts(name: str, boundary: float, shift: float) -> None:
    counts = tuple(
        E.count_high(make_schedule(name, steps=steps, shift=shift), boundary) for steps in STEPS
    )
    assert counts == COUNTS[name][boundary, shift]


@pytest.mark.parametrize("name", ["unipc", "dpm++"])
@pytest.mark.parametrize("boundary", [0.875, 0.9])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0, 16.0])
def test_the_rule_equals_the_official_one(name: str, boundary: float, shift: float) -> None:
    """Official: truncated timestep >= 1000 * boundary."""
    for steps in range(1, 121):
        schedule = make_schedule(name, steps=steps, shift=shift)
        official = int((schedule.timesteps >= boundary * 1000).sum())
        assert E.count_high(schedule, boundary) == official, steps


@pytest.mark.parametrize("shift", [3.0, 5.0, 12.0])
@pytest.mark.parametrize("boundary", [0.875, 0.9])
def test_count_in_closed_form(boundary: float, shift: float) -> None:
    low = boundary / (shift - (shift - 1) * boundary)
    for steps in range(1, 101):
        schedule = make_schedule("shifted", steps=steps, shift=shift)
        expected = math.floor(steps * (1 - low) + 1e-4) + 1
        assert E.count_high(schedule, boundary) == expected, steps


def test_ties_are_high_within_the_tolerance() -> None:
    assert E.is_high(0.875, 0.875)
    assert E.is_high(torch.tensor(0.9, dtype=torch.float32).item(), 0.9), "0.89999998 in float32"
    assert E.is_high(0.875 - 0.9e-6, 0.875)
    assert not E.is_high(0.875 - 1.1e-6, 0.875)


def test_extreme_boundaries() -> None:
    schedule = make_schedule("dpm++", steps=8, shift=5.0)
    assert E.count_high(schedule, 0.0) == 8
    assert E.count_high(schedule, 1.0) == 1
    assert E.count_high(schedule, E.ABOVE_ALL) == 0


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("steps", [1, 2, 4, 20, 40, 50])
def test_boundary_at_step_gives_exactly_that_many_steps(name: str, steps: int) -> None:
    schedule = make_schedule(name, steps=steps, shift=12.0)
    for step in range(steps + 1):
        boundary = E.boundary_at_step(schedule, step)
        assert E.count_high(schedule, boundary) == step
        stage = E.Stage(name="high_noise", boundary=boundary, velocity=lambda x, _: x)
        assert stage.boundary == boundary


def test_no_boundary_divides_steps_that_are_told_one_timestep() -> None:
    schedule = make_schedule("unipc", steps=200, shift=12.0)
    told = schedule.timesteps.tolist()
    same = next(step for step in range(1, 200) if told[step - 1] == told[step])
    message = rf"switch step={same} divides two steps that are both told timestep {told[same]:g}"
    with pytest.raises(ValueError, match=message):
        E.boundary_at_step(schedule, same)
    free = [step for step in range(1, 200) if told[step - 1] > told[step]]
    for step in free:
        assert E.count_high(schedule, E.boundary_at_step(schedule, step)) == step


@pytest.mark.parametrize("step", [-1, 5])
def test_boundary_at_step_refuses(step: int) -> None:
    schedule = make_schedule("unipc", steps=4, shift=5.0)
    message = rf"switch step={step} is not within the 4 steps; use 0 \(all low noise\) to 4"
    with pytest.raises(ValueError, match=message):
        E.boundary_at_step(schedule, step)


@pytest.mark.parametrize(
    ("boundary", "message"),
    [
        (-0.1, r"boundary=-0.1 is not a noise level in \[0, 1\]; use about 0.875"),
        (875.0, r"boundary=875 is not a noise level in \[0, 1\]; use 0.875"),
        (math.nan, "boundary=nan is not a noise level"),
        (math.inf, "boundary=inf is not a noise level"),
    ],
)
def test_boundary_must_be_a_noise_level(boundary: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        E.Stage(name="high_noise", boundary=boundary, velocity=lambda x, _: x)
    with pytest.raises(ValueError, match=message):
        E.count_high(ANY, boundary)


ANY = make_schedule("shifted", steps=1, shift=1.0)
"""A grid of one level: any other is told as it is."""


def _stages(*boundaries: float) -> list[E.Stage]:
    """Stages whose velocity is filled with their own index."""
    return [
        E.Stage(name=str(i), boundary=b, velocity=lambda x, _, i=i: torch.full_like(x, float(i)))
        for i, b in enumerate(boundaries)
    ]


def test_select_takes_the_first_stage_that_reaches_the_level() -> None:
    boundaries = (0.9, 0.5, 0.0)
    assert [E.select(boundaries, s) for s in (1.0, 0.9, 0.89, 0.5, 0.49, 0.0)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("boundaries", "message"),
    [
        ((), "do not reach noise level 0; give the last stage boundary 0"),
        ((0.9, 0.5), "do not reach noise level 0"),
        ((0.5, 0.9, 0.0), "are not in order; put the high-noise stage first"),
    ],
)
def test_stages_are_checked(boundaries: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        E.route(_stages(*boundaries), ANY)
    with pytest.raises(ValueError, match=message):
        E.check_order(boundaries)


def test_route_is_latched_for_one_run() -> None:
    x = torch.zeros(1, 1, 1, 1, 1)
    stages = _stages(0.875, 0.0)
    velocity = E.route(stages, ANY)
    levels = (1.0, 0.9, 0.875, 0.8, 0.95, 0.1)
    assert [velocity(x, s).item() for s in levels] == [0, 0, 0, 1, 1, 1]
    assert E.route(stages, ANY)(x, 0.95).item() == 0, "a new run starts unlatched"


def test_route_keeps_its_stages_when_the_list_changes() -> None:
    stages = _stages(0.875, 0.0)
    velocity = E.route(stages, ANY)
    stages.clear()
    assert velocity(torch.zeros(1), 0.5).item() == 1


@pytest.mark.parametrize(
    ("boundary", "told"),
    [
        (0.875, "boundary 0.8750, SNR 0.02041 (-16.9 dB), timestep 875.0, fraction 0.650, step 26 of 40"),
        (0.9, "boundary 0.9000, SNR 0.01235 (-19.1 dB), timestep 900.0, fraction 0.575, step 23 of 40"),
        (1.0, "boundary 1.0000, timestep 1000.0, fraction 0.000, step 0 of 40"),
        (0.0, "boundary 0.0000, timestep 0.0, fraction 1.000, step 40 of 40"),
        (E.ABOVE_ALL, "fraction 0.000, step 0 of 40"),
    ],
)  # fmt: skip
def test_a_boundary_is_told_in_all_forms(boundary: float, told: str) -> None:
    schedule = make_schedule("unipc", steps=40, shift=12.0)
    assert E.in_all_forms(boundary, schedule) == told


def test_no_signal_and_no_noise_have_a_ratio() -> None:
    assert E.snr(1.0) == 0
    assert E.snr(0.0) == math.inf
