"""The loop: one trajectory across experts, resumable bit for bit, and clear refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from wanexperts.wan.experts import Stage, count_high, route
from wanexperts.wan.sampling import Progress, sample
from wanexperts.wan.schedule import make_schedule
from wanexperts.wan.solvers import SOLVERS, SolverState, evaluated

BOUNDARY = 0.875
GRIDS = ("unipc", "dpm++", "shifted")


def _noise() -> Tensor:
    return torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def _field(x: Tensor, sigma: float) -> Tensor:
    return torch.tanh(x * (1.3 - sigma)) + 0.5 * torch.sin(3 * x + 5 * sigma) - 0.2 * sigma * x


def _other(x: Tensor, sigma: float) -> Tensor:
    return 0.7 * x - torch.cos(2 * x - sigma)


def _experts(high: object = _field, low: object = _field) -> list[Stage]:
    return [
        Stage(name="high_noise", boundary=BOUNDARY, velocity=high),
        Stage(name="low_noise", boundary=0.0, velocity=low),
    ]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_few_steps_stay_finite_from_pure_noise_to_zero(solver: str, name: str, steps: int) -> None:
    schedule = make_schedule(name, steps=steps, shift=5.0)
    out = sample(_field, _noise(), schedule, SOLVERS[solver])
    assert out.shape == _noise().shape
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_last_step_lands_on_the_clean_prediction(solver: str) -> None:
    seen: list[Progress] = []
    schedule = make_schedule("unipc", steps=5, shift=5.0)
    out = sample(_field, _noise(), schedule, SOLVERS[solver], callback=seen.append)
    assert torch.allclose(out, seen[-1].denoised, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", GRIDS)
def test_two_stages_of_one_velocity_are_one_run_bit_for_bit(solver: str, name: str) -> None:
    schedule = make_schedule(name, steps=12, shift=5.0)
    assert 0 < count_high(schedule, BOUNDARY) < 12
    one = sample(_field, _noise(), schedule, SOLVERS[solver])
    two = sample(route(_experts(), schedule), _noise(), schedule, SOLVERS[solver])
    assert torch.equal(one, two)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", GRIDS)
def test_each_expert_sees_exactly_its_levels_in_order(solver: str, name: str) -> None:
    calls: list[tuple[str, float]] = []

    def high(x: Tensor, sigma: float) -> Tensor:
        calls.append(("high", sigma))
        return _field(x, sigma)

    def low(x: Tensor, sigma: float) -> Tensor:
        calls.append(("low", sigma))
        return _other(x, sigma)

    schedule = make_schedule(name, steps=40, shift=12.0)
    sample(route(_experts(high, low), schedule), _noise(), schedule, SOLVERS[solver])
    switch = schedule.sigmas[26].item()
    due = [s for step in range(40) for s in evaluated(solver, schedule.sigmas, step)]
    assert calls == [("low" if s <= switch else "high", s) for s in due]
    assert len(due) == 40 or (solver == "heun" and len(due) == 79)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_history_crosses_the_switch(solver: str) -> None:
    schedule = make_schedule("unipc", steps=10, shift=5.0)
    switch = count_high(schedule, BOUNDARY)
    seen: list[Progress] = []
    whole = sample(
        route(_experts(_field, _other), schedule),
        _noise(),
        schedule,
        SOLVERS[solver],
        callback=seen.append,
    )
    at_switch = seen[switch - 1]
    kept = sample(
        _other, at_switch.x, schedule, SOLVERS[solver], start=switch, state=at_switch.state
    )
    assert torch.equal(kept, whole)
    reset = sample(_other, at_switch.x, schedule, SOLVERS[solver], start=switch)
    assert (reset - whole).abs().max() > 1e-3, "two chained samplers give another clip"


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("start", [0, 1, 2, 5, 6, 11, 12])
def test_resume_is_bit_exact_from_any_step(solver: str, start: int) -> None:
    schedule = make_schedule("dpm++", steps=12, shift=5.0)
    begin = Progress(
        step=0, total=12, sigma=1.0, x=_noise(), denoised=_noise(), state=SolverState()
    )
    seen = [begin]
    velocity = route(_experts(_field, _other), schedule)
    whole = sample(velocity, _noise(), schedule, SOLVERS[solver], callback=seen.append)
    saved = seen[start]
    # Through plain tensors and an int, as a file would hold it.
    state = SolverState(
        history=tuple(held.clone() for held in saved.state.history),
        last=None if saved.state.last is None else saved.state.last.clone(),
        order=int(saved.state.order),
    )
    resumed = sample(
        route(_experts(_field, _other), schedule),
        saved.x.clone(),
        schedule,
        SOLVERS[solver],
        start=saved.step,
        state=state,
    )
    assert torch.equal(resumed, whole)


def test_an_exception_of_the_callback_stops_the_run_and_leaves_a_way_back() -> None:
    class InterruptedError_(Exception):
        pass

    evaluations = 0
    kept: list[Progress] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        nonlocal evaluations
        evaluations += 1
        return _field(x, sigma)

    def callback(progress: Progress) -> None:
        kept.append(progress)
        if progress.step == 3:
            raise InterruptedError_

    schedule = make_schedule("unipc", steps=8, shift=5.0)
    with pytest.raises(InterruptedError_):
        sample(velocity, _noise(), schedule, SOLVERS["unipc"], callback=callback)
    assert evaluations == 3
    saved = kept[-1]
    resumed = sample(
        velocity, saved.x, schedule, SOLVERS["unipc"], start=saved.step, state=saved.state
    )
    assert evaluations == 8
    assert torch.equal(resumed, sample(_field, _noise(), schedule, SOLVERS["unipc"]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_progress_tells_the_truth(solver: str) -> None:
    schedule = make_schedule("unipc", steps=5, shift=5.0)
    seen: list[Progress] = []
    out = sample(_field, _noise(), schedule, SOLVERS[solver], callback=seen.append)
    assert [p.step for p in seen] == [1, 2, 3, 4, 5]
    assert {p.total for p in seen} == {5}
    assert [p.sigma for p in seen] == schedule.sigmas[:-1].tolist()
    assert torch.equal(seen[-1].x, out)
    x, sigma = _noise(), seen[0].sigma
    assert torch.allclose(seen[0].denoised, x - sigma * _field(x, sigma), atol=1e-6)


def test_the_noise_is_neither_changed_nor_scaled() -> None:
    noise = _noise()
    got: list[Tensor] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        got.append(x.clone())
        return _field(x, sigma)

    sample(velocity, noise, make_schedule("unipc", steps=2, shift=5.0), SOLVERS["unipc"])
    assert torch.equal(noise, _noise())
    assert torch.equal(got[0], noise), "the first sigma is 0.9998 and is still taken as pure noise"


@pytest.mark.parametrize("solver", SOLVERS)
def test_low_precision_networks_do_not_lower_the_state(solver: str) -> None:
    def velocity(x: Tensor, sigma: float) -> Tensor:
        assert x.dtype == torch.float32
        return _field(x, sigma).bfloat16()

    seen: list[Progress] = []
    schedule = make_schedule("unipc", steps=4, shift=5.0)
    sample(velocity, _noise().bfloat16(), schedule, SOLVERS[solver], callback=seen.append)
    for progress in seen:
        held = [progress.x, progress.denoised, *progress.state.history]
        assert {t.dtype for t in held} == {torch.float32}


def test_no_graph_is_kept() -> None:
    weight = torch.ones((), requires_grad=True)
    schedule = make_schedule("unipc", steps=2, shift=5.0)
    out = sample(lambda x, s: weight * _field(x, s), _noise(), schedule, SOLVERS["unipc"])
    assert not out.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_nan_names_its_step_and_never_goes_on(bad: float) -> None:
    calls: list[float] = []
    seen: list[Progress] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return torch.full_like(x, bad) if len(calls) == 3 else _field(x, sigma)

    schedule = make_schedule("unipc", steps=8, shift=5.0)
    message = r"step 3 of 8 \(sigma 0.9373\) gave NaN or infinity; use a wider compute dtype"
    with pytest.raises(FloatingPointError, match=message):
        sample(velocity, _noise(), schedule, SOLVERS["unipc"], callback=seen.append)
    assert len(calls) == 3
    assert len(seen) == 2


@pytest.mark.parametrize("start", [-1, 5])
def test_start_must_be_a_step(start: int) -> None:
    schedule = make_schedule("unipc", steps=4, shift=5.0)
    message = f"start={start} is not within the 4 steps; use 0 to 4"
    with pytest.raises(ValueError, match=message):
        sample(_field, _noise(), schedule, SOLVERS["unipc"], start=start)


def test_state_of_another_run_is_refused() -> None:
    schedule = make_schedule("unipc", steps=4, shift=5.0)
    state = SolverState(history=(_noise(),), last=_noise(), order=1)
    with pytest.raises(ValueError, match="start=0 came with the solver state of a run under way"):
        sample(_field, _noise(), schedule, SOLVERS["unipc"], state=state)
    with pytest.raises(ValueError, match="resume with the latents saved beside the state"):
        sample(_field, _noise()[:1], schedule, SOLVERS["unipc"], start=1, state=state)


def test_noise_must_be_finite() -> None:
    noise = _noise()
    noise[0, 0, 0, 0, 0] = math.nan
    schedule = make_schedule("unipc", steps=4, shift=5.0)
    with pytest.raises(ValueError, match="the noise holds NaN or infinity; use standard normal"):
        sample(_field, noise, schedule, SOLVERS["unipc"])
