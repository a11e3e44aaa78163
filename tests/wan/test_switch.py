"""One place, six ways to say it."""

from __future__ import annotations

import math

import pytest
from wanexperts.wan.experts import count_high, snr
from wanexperts.wan.schedule import Schedule, make_schedule
from wanexperts.wan.switch import KINDS, Switch, sigma_of_snr

OWN = 0.875


def grid(steps: int = 40, shift: float = 12.0) -> Schedule:
    return make_schedule("unipc", steps=steps, shift=shift)


# Official figures: boundary 0.875 is SNR 1/49 and has 26 of 40 steps above it at shift 12; the 26th
# is told timestep 877, the 27th 865.
SAME_PLACE = [
    Switch("auto"),
    Switch("boundary", 0.875),
    Switch("snr", 1 / 49),
    Switch("timestep", 875),
    Switch("fraction", 0.65),
    Switch("step", 26),
]


def test_every_kind_is_here() -> None:
    assert {switch.kind for switch in SAME_PLACE} == set(KINDS)


@pytest.mark.parametrize("switch", SAME_PLACE, ids=lambda switch: switch.kind)
def test_all_kinds_can_say_the_official_switch(switch: Switch) -> None:
    boundary = switch.boundary(grid(), OWN)
    assert count_high(grid(), boundary) == 26
    alone = switch.kind in ("boundary", "snr", "timestep")
    assert switch.level == (boundary if alone else None)
    if switch.kind not in ("fraction", "step"):
        assert boundary == pytest.approx(0.875, abs=1e-12)
    else:
        assert 0.865 < boundary < 0.877


@pytest.mark.parametrize("sigma", [0.1, 0.5, 0.875, 0.9, 1.0])
def test_snr_is_the_square_of_signal_over_noise_and_back(sigma: float) -> None:
    ratio = snr(sigma)
    assert ratio == pytest.approx(((1 - sigma) / sigma) ** 2)
    assert sigma_of_snr(ratio) == pytest.approx(sigma, abs=1e-12)


@pytest.mark.parametrize(("value", "steps"), [(0, 0), (0.5, 3), (0.49, 2), (0.1, 1), (1, 5)])
def test_halves_of_a_step_round_up(value: float, steps: int) -> None:
    five = grid(steps=5)
    assert count_high(five, Switch("fraction", value).boundary(five, OWN)) == steps


@pytest.mark.parametrize("step", [0, 1, 26, 39, 40])
def test_steps_are_counted_from_the_start(step: int) -> None:
    assert count_high(grid(), Switch("step", step).boundary(grid(), OWN)) == step


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("moon", 1, "switch='moon' is not one of auto, boundary, snr, timestep, fraction, step"),
        ("db", 3, "use snr with the plain ratio 1.995"),
        ("boundary", 875, r"boundary=875 is not a noise level in \[0, 1\]; use 0.875"),
        (
            "snr",
            -16.9,
            "switch snr=-16.9 is not a ratio within 0 to 100; use 0.02042 if these are dec",
        ),
        ("snr", math.nan, "switch snr=nan is not a ratio"),
        ("snr", 875, "switch snr=875 is not a ratio within 0 to 100; use about 0.0204"),
        ("timestep", 1001, "switch timestep=1001 is not within 0 to 1000; use about 875"),
        ("timestep", math.nan, "switch timestep=nan"),
        ("fraction", 65, "switch fraction=65 is not within 0 to 1; use 0.65"),
        ("fraction", -0.1, "switch fraction=-0.1 is not within 0 to 1; use about 0.5"),
        ("step", 2.5, "switch step=2.5 is not a whole number of steps"),
        ("step", -1, "switch step=-1 is not a whole number of steps"),
        ("step", math.inf, "switch step=inf is not a whole number of steps"),
    ],
)
def test_bad_switches_are_refused_in_a_sentence(kind: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Switch(kind, value)


def test_a_sentence_calls_a_switch_as_its_person_does() -> None:
    for kind, value in (("moon", 1), ("snr", -1), ("timestep", -1), ("fraction", 2), ("step", 0.5)):
        with pytest.raises(ValueError, match=f"^until[= ]'?{kind}"):
            Switch(kind, value, named="until")
    with pytest.raises(ValueError, match=r"^until step=6 is not within the 5 steps"):
        Switch("step", 6, named="until").boundary(grid(steps=5), OWN)
    assert Switch("step", 3, named="until") == Switch("step", 3)


def test_a_step_the_run_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="switch step=41 is not within the 40 steps"):
        Switch("step", 41).boundary(grid(), OWN)
