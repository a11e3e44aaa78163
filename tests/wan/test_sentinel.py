"""The sentinel: what counts as broken, what is tried, and that a run in which nothing breaks is untouched."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from wanexperts.wan.experts import Stage, count_high, route
from wanexperts.wan.sampling import Progress, sample
from wanexperts.wan.schedule import Schedule, Velocity, make_schedule
from wanexperts.wan.sentinel import (
    LEEWAY,
    NUMBERS,
    Failure,
    Rung,
    Verdict,
    Watch,
    check,
    expected,
)
from wanexperts.wan.solvers import SOLVERS, START

STEPS = 8
SHAPE = (1, 4, 3, 4, 4)


def _noise(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _field(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x * (1.3 - sigma)) + 0.5 * torch.sin(3 * x + 5 * sigma) - 0.2 * sigma * x


def _other(x: Tensor, sigma: float) -> Tensor:
    return 0.7 * x - torch.cos(2 * x - sigma)


def _schedule() -> Schedule:
    return make_schedule("unipc", steps=STEPS, shift=5.0)


def _experts(schedule: Schedule) -> Velocity:
    stages = [
        Stage(name="high_noise", boundary=0.875, velocity=_field),
        Stage(name="low_noise", boundary=0.0, velocity=_other),
    ]
    return route(stages, schedule)


class Flaw:
    """A velocity that fails at one level, as often as asked."""

    def __init__(
        self, velocity: Velocity, level: float, fail: Callable[[Tensor], Tensor], times: int = 99
    ) -> None:
        self.velocity, self.level, self.fail, self.left = velocity, level, fail, times

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        out = self.velocity(x, sigma)
        if abs(sigma - self.level) < 1e-6 and self.left:
            self.left -= 1
            return self.fail(out)
        return out


def _nan(out: Tensor) -> Tensor:
    out = out.clone()
    out[0, 1, 2, 3, 0] = math.nan
    return out


def _inf(out: Tensor) -> Tensor:
    out = out.clone()
    out[0, 1, 0, 0, 0] = math.inf
    return out


def _huge(out: Tensor) -> Tensor:
    return out * 1e4


def _no_memory(out: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. More words.")


BREAKS = {"nan": _nan, "inf": _inf, "huge": _huge}


@pytest.mark.parametrize("shape", [(1, 16, 3, 4, 6), (2, 16, 3, 4, 6), (1, 4, 8, 8), (2, 64)])
def test_honest_latents_of_any_shape_pass(shape: tuple[int, ...]) -> None:
    clean, noise = _noise(shape) * 0.9, torch.randn(shape)
    for sigma in (0.0, 0.1, 0.5, 0.95, 1.0):
        assert check(clean, sigma, x=(1 - sigma) * clean + sigma * noise).good
    assert check(clean, 0.3).good
    assert check(torch.zeros(shape), 0.0, x=torch.zeros(shape)).good, "a blank clip at level 0"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_none_is_seen_and_placed(bad: float, dtype: torch.dtype) -> None:
    x = _noise().to(dtype)
    x[0, 3, 1, 2, 2] = bad
    verdict = check(x, 0.5)
    assert verdict.failure == Failure(kind=NUMBERS, told="NaN or infinity in 1 of 3 latent frames")
    assert not check(_noise(), 0.5, x=x).good


def test_the_scale_rule_is_the_one_that_is_documented() -> None:
    unit = torch.ones(SHAPE)
    for sigma in (0.0, 0.4, 0.9, 1.0):
        top = LEEWAY * math.sqrt((1 - sigma) ** 2 + sigma**2)
        assert math.isclose(expected(sigma) * LEEWAY, top)
        assert check(unit, sigma, x=unit * top * 0.999).good
        assert not check(unit, sigma, x=unit * top * 1.001).good
        assert check(unit, sigma, x=unit * sigma / LEEWAY * 1.001).good
        if sigma:
            lost = check(unit, sigma, x=unit * sigma / LEEWAY * 0.999).failure
            assert lost is not None
            assert lost.told == f"values without the noise of level {sigma:.4f}"
    assert check(unit * LEEWAY * 0.999, 0.9).good
    large = check(unit * LEEWAY * 2, 0.9).failure
    assert large is not None
    assert large.told == "values 100 times larger than noise level 0.0000 allows"


def test_one_broken_frame_is_not_averaged_away() -> None:
    x = _noise((1, 4, 81, 4, 4))
    x[:, :, 40] *= LEEWAY * 4
    failure = check(x, 0.5).failure
    assert failure is not None
    assert failure.told.endswith("in 1 of 81 latent frames")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_watch_changes_nothing_where_nothing_fails(solver: str) -> None:
    schedule = _schedule()
    watch = Watch(
        ladder=[Rung(name="never", build=lambda: pytest.fail("was built"))],
        relief=[Rung(name="never", build=lambda: pytest.fail("was built"))],
        rescue=lambda *_: pytest.fail("was asked"),
    )
    plain = sample(_experts(schedule), _noise(), schedule, SOLVERS[solver])
    watched = sample(_experts(schedule), _noise(), schedule, SOLVERS[solver], watch=watch)
    assert torch.equal(watched, plain)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("step", range(STEPS))
def test_a_bad_step_is_done_again_from_its_saved_input(
    solver: str, how: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With a rung that computes the same velocity, the run ends as if nothing had happened."""
    schedule = _schedule()
    wanted = sample(_experts(schedule), _noise(), schedule, SOLVERS[solver])
    flawed = Flaw(_experts(schedule), schedule.sigmas[step].item(), BREAKS[how])
    seen: list[Progress] = []
    watch = Watch(ladder=[Rung(name="float32", build=lambda: _experts(schedule))])
    with caplog.at_level(logging.WARNING):
        got = sample(flawed, _noise(), schedule, SOLVERS[solver], callback=seen.append, watch=watch)
    assert torch.equal(got, wanted)
    assert [p.step for p in seen] == list(range(1, STEPS + 1))
    assert all(torch.isfinite(p.x).all() for p in seen)
    # Heun looks at a level twice: at the end of one step and the beginning of the next.
    assert len(caplog.messages) == (2 if solver == "heun" and step else 1)
    first = caplog.messages[-1]
    assert first.startswith(f"step {step + 1} of {STEPS} (sigma {schedule.sigmas[step]:.4f}) gave ")
    assert first.endswith("; it is done again with float32")


def test_rungs_are_climbed_in_order_for_one_step_only() -> None:
    schedule, built = _schedule(), []

    def rung(name: str, velocity: Velocity) -> Rung:
        return Rung(name=name, build=lambda: built.append(name) or velocity)

    level = schedule.sigmas[2].item()
    main = Flaw(_field, level, _nan)
    watch = Watch(
        ladder=[
            rung("plain", Flaw(_field, level, _inf)),
            rung("float32", _other),
            rung("never", _field),
        ]
    )
    got = sample(main, _noise(), schedule, SOLVERS["euler"], watch=watch)
    assert built == ["plain", "float32"]
    parts = {2: _other}
    x = _noise()
    for step in range(STEPS):
        x, _ = SOLVERS["euler"](parts.get(step, _field), x, schedule.sigmas, step, START)
    assert torch.equal(got, x)


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_where_nothing_helps_the_last_good_latents_are_kept(step: int) -> None:
    schedule = _schedule()
    seen: list[Progress] = []
    kept: list[tuple[int, Tensor, Tensor | None]] = []

    def rescue(*given: object) -> str:
        kept.append(given)
        return "the latents of step 3 are in FILE"

    level = schedule.sigmas[step].item()
    watch = Watch(
        ladder=[Rung(name="plain", build=lambda: Flaw(_field, level, _nan))], rescue=rescue
    )
    with pytest.raises(FloatingPointError) as stop:
        sample(
            Flaw(_field, level, _inf), _noise(), schedule, SOLVERS["unipc"],
            callback=seen.append, watch=watch,
        )  # fmt: skip
    assert len(seen) == step
    ((done, x, denoised),) = kept
    assert done == step
    if step:
        assert torch.equal(x, seen[-1].x)
        assert torch.equal(denoised, seen[-1].denoised)
    else:
        assert torch.equal(x, _noise())
        assert denoised is None
    told = str(stop.value)
    assert told.startswith(f"step {step + 1} of {STEPS} (sigma {level:.4f}) gave NaN or infinity")
    assert told.endswith("; the latents of step 3 are in FILE")


@pytest.mark.parametrize("step", [0, 4, STEPS - 1])
def test_a_step_without_memory_is_done_again_smaller_and_so_is_the_rest(step: int, caplog) -> None:
    schedule, calls = _schedule(), []

    def small(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return _field(x, sigma)

    level = schedule.sigmas[step].item()
    watch = Watch(
        relief=[
            Rung(name="memory tidied up", build=lambda: Flaw(_field, level, _no_memory)),
            Rung(name="parts", build=lambda: small),
        ],
        ladder=[Rung(name="never", build=lambda: pytest.fail("was built"))],
    )
    wanted = sample(_field, _noise(), schedule, SOLVERS["unipc"])
    main = Flaw(_field, level, _no_memory)
    got = sample(main, _noise(), schedule, SOLVERS["unipc"], watch=watch)
    assert torch.equal(got, wanted)
    assert calls == schedule.sigmas[step:-1].tolist()
    assert [message.partition(" gave ")[2] for message in caplog.messages] == [
        f"no result for want of memory (CUDA out of memory); it is done again with {name}"
        for name in ("memory tidied up", "parts")
    ]


def test_each_failure_takes_the_next_rung_of_its_own_kind() -> None:
    schedule = _schedule()
    level, taken = schedule.sigmas[1].item(), []

    def rung(name: str, fail: Callable[[Tensor], Tensor] | None) -> Rung:
        def build() -> Velocity:
            taken.append(name)
            return Flaw(_field, level, fail) if fail else _field

        return Rung(name=name, build=build)

    watch = Watch(
        ladder=[rung("ladder 1", _no_memory), rung("ladder 2", None)],
        relief=[rung("relief 1", _nan)],
    )
    sample(Flaw(_field, level, _nan), _noise(), schedule, SOLVERS["euler"], watch=watch)
    assert taken == ["ladder 1", "relief 1", "ladder 2"]


def test_memory_that_nothing_gives_back_ends_the_run_in_one_sentence() -> None:
    schedule = _schedule()
    level = schedule.sigmas[3].item()
    flawed = Flaw(_field, level, _no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        sample(flawed, _noise(), schedule, SOLVERS["euler"])
    watch = Watch(
        relief=[Rung(name="parts", build=lambda: flawed)], rescue=lambda step, *_: f"kept {step}"
    )
    told = (
        rf"^step 4 of 8 \(sigma {level:.4f}\) gave no result for want of memory \(CUDA out of memory\); "
        "use fewer frames or a smaller size; kept 3$"
    )
    with pytest.raises(torch.OutOfMemoryError, match=told):
        sample(flawed, _noise(), schedule, SOLVERS["euler"], watch=watch)


def test_a_failed_step_leaves_no_memory_behind() -> None:
    """The frames of an attempt without memory hold its tensors; they must go before the next attempt."""
    schedule, alive = _schedule(), []

    class Big:
        count = 0

        def __init__(self) -> None:
            Big.count += 1

        def __del__(self) -> None:
            Big.count -= 1

    def main(x: Tensor, sigma: float) -> Tensor:
        held = Big()
        raise torch.OutOfMemoryError(f"no memory for {held}")

    def build() -> Velocity:
        alive.append(Big.count)
        return _field

    watch = Watch(relief=[Rung(name="parts", build=build)])
    sample(main, _noise(), schedule, SOLVERS["euler"], watch=watch)
    assert alive == [0]


class _Late:
    """An event of a device that is still busy when it is asked; ``waits`` tells when it was waited for."""

    waits: list[int]

    def __init__(self, evaluations: list[float], waits: list[int]) -> None:
        self.evaluations, self.waits = evaluations, waits

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        self.waits.append(len(self.evaluations))


@pytest.mark.parametrize("solver", ["unipc", "euler", "lcm"])
@pytest.mark.parametrize("step", [None, *range(STEPS)])
def test_on_a_busy_device_the_next_step_is_begun_before_the_verdict_is_read(
    monkeypatch: pytest.MonkeyPatch, solver: str, step: int | None
) -> None:
    schedule, evaluations, waits = _schedule(), [], []
    wanted = sample(_experts(schedule), _noise(), schedule, SOLVERS[solver])

    def late(denoised: Tensor, sigma: float, *, x: Tensor) -> Verdict:
        verdict = check(denoised, sigma, x=x)
        return replace(verdict, event=_Late(evaluations, waits))

    monkeypatch.setattr("wanexperts.wan.sampling.check", late)
    level = -1.0 if step is None else schedule.sigmas[step].item()
    flawed = Flaw(_experts(schedule), level, _nan)

    def velocity(x: Tensor, sigma: float) -> Tensor:
        evaluations.append(sigma)
        return flawed(x, sigma)

    seen: list[Progress] = []
    watch = Watch(ladder=[Rung(name="float32", build=lambda: _experts(schedule))])
    got = sample(velocity, _noise(), schedule, SOLVERS[solver], callback=seen.append, watch=watch)
    assert torch.equal(got, wanted)
    if step is None:
        # The verdict on step k is read when k + 1 has been asked of the device, the last one at the end.
        assert waits == [*range(2, STEPS + 1), STEPS]
        assert [p.step for p in seen] == list(range(1, STEPS + 1))
    else:
        shown = [p.step for p in seen]
        assert shown == sorted([*range(1, STEPS + 1), step + 1]), "shown again, put right"
        assert not seen[step].verdict.good
        assert seen[step + 1].verdict.good


@pytest.mark.parametrize(("waiting", "changes"), [(True, 1), (False, 3)])
def test_another_expert_is_not_begun_before_the_verdict_on_the_step_before(
    monkeypatch: pytest.MonkeyPatch, waiting: bool, changes: int
) -> None:
    """Else a bad last step of one costs two changes more: back to it, and to the other one again."""
    schedule, asked = _schedule(), []
    wanted = sample(_experts(schedule), _noise(), schedule, SOLVERS["unipc"])

    def late(denoised: Tensor, sigma: float, *, x: Tensor) -> Verdict:
        return replace(check(denoised, sigma, x=x), event=_Late([], []))

    def experts() -> Velocity:
        def seen(velocity: Velocity) -> Velocity:
            def run(x: Tensor, sigma: float) -> Tensor:
                asked.append(velocity)
                return velocity(x, sigma)

            return run

        stages = [
            Stage(name="high_noise", boundary=0.875, velocity=seen(_field)),
            Stage(name="low_noise", boundary=0.0, velocity=seen(_other)),
        ]
        return route(stages, schedule)

    monkeypatch.setattr("wanexperts.wan.sampling.check", late)
    first_low = count_high(schedule, 0.875)
    flawed = Flaw(experts(), schedule.sigmas[first_low - 1].item(), _nan)
    watch = Watch(
        ladder=[Rung(name="float32", build=experts)], waits=[first_low] if waiting else []
    )
    got = sample(flawed, _noise(), schedule, SOLVERS["unipc"], watch=watch)
    assert torch.equal(got, wanted)
    assert sum(one is not other for one, other in pairwise(asked)) == changes
