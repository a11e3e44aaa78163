"""Grids and timesteps equal the official ones; the formulas invert; every refusal says what to do."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from wanexperts.wan import schedule as S

# Integer timesteps of the official code.
OFFICIAL_TIMESTEPS = {
    ("unipc", 40, 12.0): """999 997 995 993 990 988 985 982 979 976 972 969 965 961 956 952 947 941
        936 929 922 915 907 898 888 877 865 852 837 819 799 776 749 717 678 631 571 492 386 235""",
    ("unipc", 40, 5.0): """999 994 989 983 978 972 965 959 952 944 937 929 920 911 902 892 882 870
        859 846 833 818 803 786 768 749 728 706 681 654 624 591 555 514 468 416 356 288 208 113""",
    ("unipc", 50, 5.0): """999 995 991 987 982 978 973 968 963 957 952 946 940 934 927 920 913 906
        898 890 882 873 863 854 843 833 821 809 796 783 768 753 737 720 701 681 660 636 611 584 555
        522 487 448 405 356 302 241 172 92""",
    ("unipc", 4, 5.0): "999 937 833 624",
    ("dpm++", 4, 5.0): "1000 937 833 625",
}

GRIDS = ("unipc", "dpm++", "shifted")
"""Schedules of any number of steps; the others have their own."""


@pytest.mark.parametrize(("name", "steps", "shift"), OFFICIAL_TIMESTEPS)
def test_timesteps_are_the_official_integers(name: str, steps: int, shift: float) -> None:
    schedule = S.make_schedule(name, steps=steps, shift=shift)
    expected = [float(t) for t in OFFICIAL_TIMESTEPS[name, steps, shift].split()]
    assert schedule.timesteps.tolist() == expected


@pytest.mark.parametrize(("name", "top"), [("unipc", np.float32(0.999)), ("dpm++", 1.0)])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0, 16.0])
def test_grids_equal_the_official_numpy_arithmetic(name: str, top: float, shift: float) -> None:
    """Bit for bit: one rounding elsewhere and some timestep truncates to the integer below."""
    for steps in range(1, 121):
        u = np.linspace(float(top), 0, steps + 1)[:-1]
        levels = shift * u / (1 + (shift - 1) * u)
        schedule = S.make_schedule(name, steps=steps, shift=shift)
        assert schedule.sigmas.tolist() == [*levels.astype(np.float32).tolist(), 0.0], steps
        assert schedule.timesteps.tolist() == (levels * 1000).astype(np.int64).tolist(), steps


def test_sigmas_are_not_truncated() -> None:
    sigmas = S.make_schedule("unipc", steps=4, shift=5.0).sigmas
    assert [round(s, 4) for s in sigmas.tolist()] == [0.9998, 0.9373, 0.8331, 0.6247, 0.0]


def test_shifted_feeds_fractional_timesteps() -> None:
    schedule = S.make_schedule("shifted", steps=4, shift=5.0)
    assert schedule.timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625], abs=1e-9)
    assert schedule.sigmas.tolist() == pytest.approx([1, 0.9375, 2.5 / 3, 0.625, 0], abs=1e-7)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 40, 200])
@pytest.mark.parametrize("shift", [1.0, 5.0, 16.0])
def test_documented_shapes_dtypes_and_ranges(name: str, steps: int, shift: float) -> None:
    schedule = S.make_schedule(name, steps=steps, shift=shift)
    assert schedule.name == name
    assert schedule.steps == steps
    assert schedule.sigmas.shape == (steps + 1,)
    assert schedule.sigmas.dtype == torch.float32
    assert schedule.timesteps.shape == (steps,)
    assert schedule.timesteps.dtype == torch.float64
    assert schedule.sigmas[-1] == 0
    assert (schedule.sigmas.diff() < 0).all()
    assert (schedule.sigmas <= 1).all()
    assert (schedule.timesteps - 1000 * schedule.sigmas[:-1].double()).abs().max() < 1.0001


def test_first_official_sigma_comes_from_float32_storage() -> None:
    stored = float(torch.tensor(0.999, dtype=torch.float32))
    first = S.make_schedule("unipc", steps=10, shift=1.0).sigmas[0].item()
    assert first == stored
    assert S.OFFICIAL_SIGMA_MAX == stored != 0.999


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_level_gives_its_own_timestep(name: str) -> None:
    schedule = S.make_schedule(name, steps=50, shift=5.0)
    for sigma, t in zip(schedule.sigmas[:-1].tolist(), schedule.timesteps.tolist(), strict=True):
        assert schedule.timestep(sigma) == t


def test_repeated_integer_timesteps_are_found_by_sigma() -> None:
    schedule = S.make_schedule("unipc", steps=100, shift=12.0)
    ts = schedule.timesteps.tolist()
    assert len(set(ts)) < len(ts), "this case is here because integers repeat"
    assert [schedule.timestep(s) for s in schedule.sigmas[:-1].tolist()] == ts


def test_a_level_off_the_grid_is_not_truncated() -> None:
    schedule = S.make_schedule("unipc", steps=4, shift=5.0)
    assert schedule.timestep(0.9) == 900.0
    assert schedule.timestep(0.90051) == pytest.approx(900.51)
    assert schedule.timestep(0.0) == 0.0


def test_lightning_is_the_published_list_shifted() -> None:
    """LightX2V reads 1000, 750, 500, 250 as places in a float32 table of 1000 shifted levels."""
    for shift in (3.0, 5.0, 12.0):
        table = torch.linspace(1.0, 0.0, 1001)[:-1]
        table = shift * table / (1 + (shift - 1) * table)
        published = table[[1000 - t for t in (1000, 750, 500, 250)]]
        schedule = S.make_schedule("lightning", steps=4, shift=shift)
        assert (schedule.sigmas[:-1] - published).abs().max() < 1e-7
        assert (schedule.timesteps - 1000 * published).abs().max() < 1e-4
        assert schedule.sigmas[-1] == 0
    assert S.make_schedule("lightning", steps=4, shift=5.0).timesteps.tolist() == pytest.approx(
        [1000, 937.5, 2500 / 3, 625], abs=1e-9
    )


@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_the_lcm_list_is_taken_as_it_is(shift: float) -> None:
    schedule = S.make_schedule("lcm", steps=3, shift=shift)
    assert schedule.name == "lcm"
    assert schedule.timesteps.tolist() == [1000, 757, 522]
    assert schedule.sigmas.tolist() == torch.tensor([1.0, 0.757, 0.522, 0.0]).tolist()


def test_a_list_of_timesteps_is_a_schedule() -> None:
    causvid = [1000, 934, 862, 756, 603, 410, 250, 140, 74]
    schedule = S.custom_schedule(causvid)
    assert schedule.name == "custom"
    assert schedule.timesteps.tolist() == causvid
    assert schedule.sigmas.tolist() == pytest.approx([*(t / 1000 for t in causvid), 0])
    assert [schedule.timestep(s) for s in schedule.sigmas[:-1].tolist()] == causvid
    assert S.custom_schedule([500.5, 250, 0]).timesteps.tolist() == [500.5, 250], "0 is the end"


@pytest.mark.parametrize(
    ("text", "timesteps"),
    [
        ("1000, 750, 500, 250", [1000, 750, 500, 250]),
        ("[1000,757,522]", [1000, 757, 522]),
        ("999\n937.25 833;624", [999, 937.25, 833, 624]),
        ("1.0 0.9375 0.5 0.0", [1000, 937.5, 500, 0]),
        ("", []),
    ],
)
def test_lists_are_read_as_people_paste_them(text: str, timesteps: list[float]) -> None:
    assert S.parse_timesteps(text) == timesteps


def test_words_in_a_list_are_named() -> None:
    message = "the list '1000, beta' holds what is not a number; write timesteps such as 1000"
    with pytest.raises(ValueError, match=message):
        S.parse_timesteps("1000, beta")


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "the list has no timesteps; give some, such as 1000, 750, 500, 250"),
        ([0], "the list has no timesteps"),
        ([1001, 500], "timestep 1001 of the list is not within 0 to 1000; use 1000"),
        ([500, -1], "timestep -1 of the list is not within 0 to 1000"),
        ([1000, math.nan], "timestep nan of the list is not within 0 to 1000"),
        ([1000, 500, 500], "timestep 500 of the list comes after 500; go down with every step"),
        ([250, 500], "timestep 500 of the list comes after 250"),
    ],
)
def test_lists_that_cannot_be_run(timesteps: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S.custom_schedule(timesteps)


@pytest.mark.parametrize("shift", [0.5, 1.0, 5.0, 12.0])
def test_shift_inverts_and_composes(shift: float) -> None:
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    sigma = S.shift_sigma(u, shift)
    assert torch.allclose(S.unshift_sigma(sigma, shift), u, atol=1e-14)
    twice = S.shift_sigma(S.shift_sigma(u, shift), 3.0)
    assert torch.allclose(twice, S.shift_sigma(u, 3 * shift), atol=1e-14)
    assert S.unshift_sigma(S.shift_sigma(0.3, shift), shift) == pytest.approx(0.3, abs=1e-15)


def test_half_log_snr_at_the_ends_and_the_boundary() -> None:
    found = S.half_log_snr(torch.tensor([1.0, 0.875, 0.5, 0.0], dtype=torch.float64)).tolist()
    assert found == [-math.inf, pytest.approx(-math.log(7)), 0.0, math.inf]


@pytest.mark.parametrize(
    ("name", "steps", "shift", "message"),
    [
        ("ddim", 4, 5.0, r"unknown schedule 'ddim'; use one of unipc, dpm\+\+, shifted"),
        ("lightning", 8, 5.0, "steps=8 does not fit the lightning schedule; use its 4 steps"),
        ("lcm", 4, 5.0, "steps=4 does not fit the lcm schedule; use its 3 steps"),
        ("unipc", 0, 5.0, "steps=0 is not at least 1; use 4 to 50"),
        ("unipc", 4, 0.0, "shift=0.0 is not a positive number; use 1"),
        ("unipc", 4, -3.0, "shift=-3.0 is not a positive number"),
        ("unipc", 4, math.nan, "shift=nan is not a positive number"),
        ("unipc", 4, math.inf, "shift=inf is not a positive number"),
        ("dpm++", 1000, 1e5, "1000 sigmas do not descend strictly in float32; use fewer steps"),
    ],
)
def test_refusals(name: str, steps: int, shift: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S.make_schedule(name, steps=steps, shift=shift)


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([1.0], "not N\\+1 noise levels; give a list of at least two"),
        ([14.6, 1.0, 0.0], "from 0 to 14.6, outside \\[0, 1\\]; use a flow-matching schedule"),
        ([math.nan, 0.5, 0.0], "outside \\[0, 1\\]"),
        ([1.0, 0.5, 0.5, 0.0], "do not descend strictly"),
        ([0.0, 0.5, 1.0], "sigmas go up"),
    ],
)
def test_foreign_sigmas_are_checked(sigmas: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        S.check_sigmas(torch.tensor(sigmas))


def test_timesteps_must_match_the_steps() -> None:
    with pytest.raises(ValueError, match="3 timesteps for 2 steps; give one per step"):
        S.Schedule(name="x", sigmas=torch.tensor([1.0, 0.5, 0.0]), timesteps=torch.zeros(3))
