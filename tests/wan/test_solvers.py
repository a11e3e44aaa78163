"""Solvers against independent oracles, known solutions and diffusers.

Precision of the oracles: they run in float64 throughout but start from the float32 sigmas of the
schedule. That matters only near 1: ``1 - sigma`` of a float32 sigma >= 0.5 is exact in float32, so
both sides see one ``ln((1 - sigma) / sigma)`` up to the rounding of two logarithms (6e-8 relative);
from unrounded sigmas ``1 - sigma`` alone would differ by 2.6e-4 at the first official level of
shift 12. What remains is rounding of float32 states, a few 1e-7 of the values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import (
    OFFICIAL_SIGMA_MAX,
    Schedule,
    make_schedule,
    shift_sigma,
)
from wanexperts.wan.solvers import EVALUATIONS, SOLVERS, SolverState, evaluated, get_solver

Oracle = Callable[[Tensor, Tensor], Tensor]


def _noise() -> Tensor:
    return torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def _field(x: Tensor, sigma: float) -> Tensor:
    """Smooth, nonlinear, of the size of a real velocity; any dtype."""
    return torch.tanh(x * (1.3 - sigma)) + 0.5 * torch.sin(3 * x + 5 * sigma) - 0.2 * sigma * x


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


# --- oracles -------------------------------------------------------------------------------------


def _bh2_weights(positions: list[float], h: float) -> Tensor:
    """Weights of B2(h) = expm1(-h) by the general linear system over any number of nodes.

    Row k asks that ``sum_j positions_j^k weights_j`` equals the k-th moment of the exponential
    kernel. ``h`` may be infinite: every moment then takes its limit.
    """
    nodes = torch.tensor(positions, dtype=torch.float64)
    minus = -h
    kernel = math.expm1(minus)
    moment = kernel / minus - 1
    rows, moments = [], []
    factorial = 1
    for k in range(len(positions)):
        rows.append(nodes**k)
        moments.append(moment * factorial / kernel)
        factorial *= k + 2
        moment = moment / minus - 1 / factorial
    return torch.linalg.solve(torch.stack(rows), torch.tensor(moments, dtype=torch.float64))


def _log_ratio(sigma: float) -> float:
    if sigma == 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def _exponential_step(
    x: Tensor, sigma: float, sigma_next: float, base: Tensor, slopes: Tensor | float
) -> Tensor:
    kernel = math.expm1(_log_ratio(sigma) - _log_ratio(sigma_next))
    return sigma_next / sigma * x - (1 - sigma_next) * kernel * (base + slopes)


def _oracle_unipc(x: Tensor, sigmas: Tensor) -> Tensor:
    """UniPC with all history in lists and the official order rules; all in float64."""
    levels = sigmas.double().tolist()
    x = x.double()
    steps, clean, starts, orders = len(levels) - 1, [], [], []
    for i in range(steps):
        clean.append(x - levels[i] * _field(x, levels[i]))
        if i > 0:
            h = _log_ratio(levels[i]) - _log_ratio(levels[i - 1])
            older = range(i - 2, i - 1 - orders[-1], -1)
            nodes = [(_log_ratio(levels[j]) - _log_ratio(levels[i - 1])) / h for j in older]
            slopes = [(clean[j] - clean[i - 1]) / r for j, r in zip(older, nodes, strict=True)] + [
                clean[i] - clean[i - 1]
            ]
            weights = _bh2_weights([*nodes, 1.0], h) if nodes else torch.tensor([0.5])
            total = torch.einsum("k,k...->...", weights.double(), torch.stack(slopes))
            x = _exponential_step(starts[-1], levels[i - 1], levels[i], clean[i - 1], total)
        starts.append(x)
        orders.append(min(2, steps - i, i + 1))
        slope: Tensor | float = 0.0
        if orders[-1] == 2:
            h = _log_ratio(levels[i + 1]) - _log_ratio(levels[i])
            node = (_log_ratio(levels[i - 1]) - _log_ratio(levels[i])) / h
            slope = 0.5 * (clean[i - 1] - clean[i]) / node
        x = _exponential_step(x, levels[i], levels[i + 1], clean[i], slope)
    return x


def _oracle_dpmpp(x: Tensor, sigmas: Tensor) -> Tensor:
    """2M in the form of the paper: extrapolated data ``(1 + 1/2r) m_i - 1/2r m_{i-1}``."""
    levels = sigmas.double().tolist()
    x = x.double()
    steps, before = len(levels) - 1, None
    for i, (sigma, sigma_next) in enumerate(pairwise(levels)):
        clean = x - sigma * _field(x, sigma)
        data = clean
        if before is not None and i < steps - 1:
            h = _log_ratio(sigma_next) - _log_ratio(sigma)
            r = (_log_ratio(sigma) - _log_ratio(levels[i - 1])) / h
            data = (1 + 0.5 / r) * clean - 0.5 / r * before
        x = _exponential_step(x, sigma, sigma_next, data, 0.0)
        before = clean
    return x


def _oracle_euler(x: Tensor, sigmas: Tensor) -> Tensor:
    levels = sigmas.double().tolist()
    x = x.double()
    for sigma, sigma_next in pairwise(levels):
        x = x - (sigma - sigma_next) * _field(x, sigma)
    return x


def _oracle_heun(x: Tensor, sigmas: Tensor) -> Tensor:
    """In the form of arXiv 2206.00364: slopes at both ends, the second left out at 0."""
    levels = sigmas.double().tolist()
    x = x.double()
    for sigma, sigma_next in pairwise(levels):
        slope = _field(x, sigma)
        end = x + (sigma_next - sigma) * slope
        if sigma_next > 0:
            slope = (slope + _field(end, sigma_next)) / 2
        x = x + (sigma_next - sigma) * slope
    return x


def _oracle_lcm(x: Tensor, sigmas: Tensor) -> Tensor:
    """Every level is reached by noising the latest clean prediction afresh."""
    levels = sigmas.double().tolist()
    x = x.double()
    for step, (sigma, sigma_next) in enumerate(pairwise(levels)):
        clean = x - sigma * _field(x, sigma)
        x = clean if sigma_next == 0 else torch.lerp(clean, _added(step), sigma_next)
    return x


def _splitmix64(seed: int, count: int) -> list[int]:
    """The first numbers of the public-domain generator SplitMix64."""
    numbers = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & (2**64 - 1)
        z = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        numbers.append(z ^ (z >> 31))
    return numbers


def _added(step: int, seed: int = 0) -> Tensor:
    """The noise LCM adds at the end of ``step``."""
    generator = torch.Generator().manual_seed(_splitmix64(seed, step + 1)[step])
    return torch.randn(_noise().shape, generator=generator).double()


ORACLES: dict[str, Oracle] = {
    "unipc": _oracle_unipc,
    "dpm++": _oracle_dpmpp,
    "euler": _oracle_euler,
    "heun": _oracle_heun,
    "lcm": _oracle_lcm,
}
GRIDS = ("unipc", "dpm++", "shifted")
DETERMINISTIC = [solver for solver in SOLVERS if solver != "lcm"]


@pytest.mark.parametrize("solver", ORACLES)
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    ("steps", "shift"),
    [(1, 5.0), (2, 5.0), (3, 5.0), (4, 5.0), (20, 1.0), (40, 12.0), (40, 5.0), (50, 8.0)],
)
def test_equals_the_float64_oracle(
    solver: str, name: str, steps: int, shift: float, record_property
) -> None:
    schedule = make_schedule(name, steps=steps, shift=shift)
    found = sample(_field, _noise(), schedule, SOLVERS[solver])
    difference = _relative(found, ORACLES[solver](_noise(), schedule.sigmas))
    record_property(f"{solver}_vs_float64", difference)
    assert difference < 1e-6


def test_oracle_needs_the_float32_sigmas() -> None:
    """The precision remark at the top of this file, as a number."""
    u = torch.linspace(OFFICIAL_SIGMA_MAX, 0, 41, dtype=torch.float64)
    exact = shift_sigma(u, 12.0)
    coarse = exact.float()
    assert torch.equal((1 - coarse[:20]).double(), 1 - coarse[:20].double()), "exact subtraction"
    first = float((1 - coarse[0].double()) / (1 - exact[0]) - 1)
    assert first == pytest.approx(-2.6e-4, abs=1e-5)


def test_table_and_oracles_cover_each_other() -> None:
    assert ORACLES.keys() == SOLVERS.keys()


# --- known solution ------------------------------------------------------------------------------

MEAN, SPREAD = 0.3, 0.5


def _exact_path(z: Tensor, sigma: float) -> Tensor:
    """Flow of Gaussian data N(MEAN, SPREAD^2): each sample keeps its standard score ``z``."""
    return MEAN * (1 - sigma) + z * math.hypot((1 - sigma) * SPREAD, sigma)


def _exact_velocity(x: Tensor, sigma: float) -> Tensor:
    width = math.hypot((1 - sigma) * SPREAD, sigma)
    z = (x - MEAN * (1 - sigma)) / width
    return -MEAN + z * (sigma - (1 - sigma) * SPREAD**2) / width


def _final_error(solver: str, steps: int) -> float:
    """Error at 0.05 of a run from 0.95, uniform in the half log-SNR, in float64."""
    ends = _log_ratio(0.95), _log_ratio(0.05)
    line = torch.linspace(*ends, steps + 1, dtype=torch.float64)
    sigmas = torch.sigmoid(-line).float()
    z = _noise()[0, 0].double()
    x, state = _exact_path(z, sigmas[0].item()), SolverState()

    def velocity(x: Tensor, sigma: float) -> Tensor:
        return _exact_velocity(x, sigma)

    for step in range(steps):
        x, state = SOLVERS[solver](velocity, x, sigmas, step, state)
    return float((x - _exact_path(z, sigmas[-1].item())).abs().max())


@pytest.mark.parametrize(
    ("solver", "order"), [("euler", 1), ("dpm++", 2), ("unipc", 2), ("heun", 2)]
)
def test_convergence_order(solver: str, order: int) -> None:
    """At least the stated order; UniC adds up to one more, Euler and 2M have exactly theirs."""
    errors = [_final_error(solver, steps) for steps in (20, 40, 80)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(rates) > order - 0.3, (errors, rates)
    if solver != "unipc":
        assert max(rates) < order + 0.3, (errors, rates)


def test_the_corrector_helps() -> None:
    assert _final_error("unipc", 20) < 0.7 * _final_error("dpm++", 20) < _final_error("euler", 20)


@pytest.mark.parametrize(("solver", "error"), [("euler", 0.08), ("dpm++", 0.02), ("unipc", 0.01)])
def test_gaussian_data_is_reached_from_noise(solver: str, error: float) -> None:
    schedule = make_schedule("unipc", steps=100, shift=3.0)
    out = sample(_exact_velocity, _noise(), schedule, SOLVERS[solver])
    assert (out - _exact_path(_noise(), 0.0)).abs().max() < error


@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_a_constant_velocity_is_integrated_exactly(solver: str) -> None:
    target = torch.full_like(_noise(), 0.25)
    schedule = make_schedule("shifted", steps=9, shift=5.0)
    out = sample(lambda *_: _noise() - target, _noise(), schedule, SOLVERS[solver])
    assert (out - target).abs().max() < 2e-6


# --- relations between solvers -------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_is_the_same_for_all(solver: str) -> None:
    schedule = make_schedule("unipc", steps=1, shift=5.0)
    euler = sample(_field, _noise(), schedule, SOLVERS["euler"])
    assert torch.allclose(sample(_field, _noise(), schedule, SOLVERS[solver]), euler, atol=1e-6)


@pytest.mark.parametrize("solver", ["unipc", "dpm++"])
def test_first_order_is_euler(solver: str) -> None:
    sigmas = torch.tensor([0.9, 0.6, 0.3, 0.0])
    x = _noise()
    first, _ = SOLVERS[solver](_field, x, sigmas, 0, SolverState())
    expected, _ = SOLVERS["euler"](_field, x, sigmas, 0, SolverState())
    assert torch.allclose(first, expected, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("last", [0.0, 0.2])
def test_each_step_evaluates_where_it_says(solver: str, last: float) -> None:
    """Heun twice, the others once; nobody asks the network at level 0."""
    calls: list[float] = []

    def velocity(x: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return _field(x, sigma)

    sigmas = torch.tensor([0.9, 0.7, 0.4, last])
    levels = sigmas.tolist()
    x, state = _noise(), SolverState()
    for step in range(3):
        x, state = SOLVERS[solver](velocity, x, sigmas, step, state)
        wanted = levels[step : step + 1 + (solver == "heun")]
        assert calls == evaluated(solver, sigmas, step) == [level for level in wanted if level]
        calls.clear()


def test_every_solver_says_what_a_step_costs() -> None:
    assert EVALUATIONS.keys() == SOLVERS.keys()


# --- noise of LCM --------------------------------------------------------------------------------


def test_the_oracle_draws_the_published_numbers() -> None:
    assert _splitmix64(0, 3) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_lcm_noise_hangs_on_the_seed_and_the_step_alone(seed: int) -> None:
    schedule = make_schedule("lcm", steps=3, shift=1.0)
    state = SolverState(seed=seed)
    whole = sample(_field, _noise(), schedule, SOLVERS["lcm"], state=state)
    x, state = _noise(), SolverState(seed=seed)
    for step in range(3):
        torch.manual_seed(step)  # the global generator plays no part
        x, after = SOLVERS["lcm"](_field, x, schedule.sigmas, step, state)
        assert after.seed == seed
        state = SolverState(history=after.history, seed=seed)
    assert torch.equal(x, whole)


def test_lcm_seeds_and_steps_do_not_repeat_each_other() -> None:
    def added(seed: int, step: int) -> Tensor:
        sigmas = torch.tensor([1.0, 0.9, 0.8, 0.7, 0.0])
        start = SolverState(seed=seed)
        return SOLVERS["lcm"](lambda x, sigma: x / sigma, _noise(), sigmas, step, start)[0]

    drawn = [added(seed, step).flatten() for seed in range(4) for step in range(3)]
    table = torch.corrcoef(torch.stack([_noise().flatten(), *drawn])) - torch.eye(13)
    assert table.abs().max() < 0.25, "none is another one, nor the start; 384 numbers each"


@pytest.mark.parametrize("name", GRIDS)
def test_lcm_ends_on_the_clip_a_network_predicts(name: str) -> None:
    """A network that knows one clip predicts it from any noise; what is added on the way is gone."""
    clip = torch.full_like(_noise(), 0.25)
    schedule = make_schedule(name, steps=9, shift=5.0)
    out = sample(lambda x, sigma: (x - clip) / sigma, _noise(), schedule, SOLVERS["lcm"])
    assert (out - clip).abs().max() < 1e-6


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_carries_the_seed(solver: str) -> None:
    sigmas = torch.tensor([0.9, 0.5, 0.0])
    _, state = SOLVERS[solver](_field, _noise(), sigmas, 0, SolverState(seed=7))
    assert state.seed == 7


@pytest.mark.parametrize("solver", SOLVERS)
def test_inputs_and_states_are_never_written(solver: str) -> None:
    sigmas = make_schedule("unipc", steps=4, shift=5.0).sigmas
    x, state = _noise(), SolverState()
    for step in range(4):
        held = [x, sigmas, *state.history, *([] if state.last is None else [state.last])]
        copies = [t.clone() for t in held]
        x, state = SOLVERS[solver](_field, x, sigmas, step, state)
        assert all(torch.equal(a, b) for a, b in zip(held, copies, strict=True))


@pytest.mark.parametrize("solver", SOLVERS)
def test_sigmas_may_be_float64(solver: str) -> None:
    sigmas = make_schedule("unipc", steps=4, shift=5.0).sigmas
    one, _ = SOLVERS[solver](_field, _noise(), sigmas, 0, SolverState())
    two, _ = SOLVERS[solver](_field, _noise(), sigmas.double(), 0, SolverState())
    assert torch.equal(one, two)
    assert two.dtype == torch.float32


@pytest.mark.parametrize("step", [-1, 4])
def test_a_step_must_exist(step: int) -> None:
    sigmas = make_schedule("unipc", steps=4, shift=5.0).sigmas
    with pytest.raises(ValueError, match=f"step={step} does not exist in 4 steps; use 0 to 3"):
        SOLVERS["unipc"](_field, _noise(), sigmas, step, SolverState())


def test_unknown_solver_lists_the_known() -> None:
    message = r"unknown solver 'rk4'; use one of unipc, dpm\+\+, euler, heun, lcm"
    with pytest.raises(ValueError, match=message):
        get_solver("rk4")
    assert get_solver("unipc") is SOLVERS["unipc"]


# --- diffusers -----------------------------------------------------------------------------------


def _diffusers(solver: str, *, shift: float = 1.0):
    diffusers = pytest.importorskip("diffusers")
    if solver == "euler":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    kind = (
        diffusers.UniPCMultistepScheduler
        if solver == "unipc"
        else diffusers.DPMSolverMultistepScheduler
    )
    return kind(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def _run_diffusers(scheduler, schedule: Schedule | None) -> Tensor:
    """A diffusers run, on our sigmas where ``schedule`` is given, else on its own."""
    if schedule is not None:
        scheduler.sigmas = schedule.sigmas.clone()
        scheduler.timesteps = schedule.timesteps.clone()
    scheduler.set_begin_index(0)
    x = _noise()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(_field(x, scheduler.sigmas[i].item()), t, x, return_dict=False)[0]
    return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
@pytest.mark.parametrize(("steps", "shift"), [(2, 5.0), (4, 5.0), (20, 5.0), (40, 12.0)])
def test_equals_diffusers_on_the_same_sigmas(
    solver: str, steps: int, shift: float, record_property
) -> None:
    schedule = make_schedule("unipc", steps=steps, shift=shift)
    scheduler = _diffusers(solver)
    scheduler.set_timesteps(steps)
    found = sample(_field, _noise(), schedule, SOLVERS[solver])
    difference = _relative(found, _run_diffusers(scheduler, schedule))
    record_property(f"{solver}_vs_diffusers", difference)
    assert difference < 1e-6


@pytest.mark.parametrize(("steps", "shift"), [(2, 5.0), (4, 5.0), (20, 5.0), (40, 12.0)])
def test_heun_equals_diffusers_on_the_same_sigmas(
    steps: int, shift: float, record_property
) -> None:
    """Diffusers' Heun walks every level but the first and the last twice, one evaluation each time."""
    diffusers = pytest.importorskip("diffusers")
    schedule = make_schedule("unipc", steps=steps, shift=shift)
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    inner = schedule.sigmas[1:-1].repeat_interleave(2)
    scheduler.sigmas = torch.cat([schedule.sigmas[:1], inner, schedule.sigmas[-1:]])
    scheduler.timesteps = 1000 * scheduler.sigmas[:-1]
    assert len(scheduler.timesteps) == 2 * steps - 1
    scheduler.set_begin_index(0)
    x = _noise()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(_field(x, scheduler.sigmas[i].item()), t, x, return_dict=False)[0]
    difference = _relative(sample(_field, _noise(), schedule, SOLVERS["heun"]), x)
    record_property("heun_vs_diffusers", difference)
    assert difference < 1e-6


@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_lcm_equals_diffusers_with_the_same_noise(
    steps: int, monkeypatch: pytest.MonkeyPatch, record_property
) -> None:
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_flow_match_lcm as theirs

    schedule = make_schedule("shifted", steps=steps, shift=5.0)
    scheduler = diffusers.FlowMatchLCMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.sigmas = schedule.sigmas.clone()
    scheduler.timesteps = 1000 * schedule.sigmas[:-1]
    scheduler.set_begin_index(0)
    drawn: list[int] = []

    def noise(*_: object, **__: object) -> Tensor:
        drawn.append(len(drawn))
        return _added(drawn[-1]).float()

    monkeypatch.setattr(theirs, "randn_tensor", noise)
    x = _noise()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(_field(x, scheduler.sigmas[i].item()), t, x, return_dict=False)[0]
    assert len(drawn) >= steps - 1
    difference = _relative(sample(_field, _noise(), schedule, SOLVERS["lcm"]), x)
    record_property("lcm_vs_diffusers", difference)
    assert difference < 1e-6


@pytest.mark.parametrize("steps", [20, 40])
def test_known_distance_to_the_diffusers_unipc_grid(steps: int) -> None:
    """diffusers ends its grid at 0.001 and starts it at 1: another set of noise levels.

    The formulas are the same (the test above), so the whole distance comes from the grid.
    """
    scheduler = _diffusers("unipc", shift=5.0)
    scheduler.set_timesteps(steps)
    theirs = _run_diffusers(scheduler, None)
    ours = sample(
        _field, _noise(), make_schedule("unipc", steps=steps, shift=5.0), SOLVERS["unipc"]
    )
    assert 1e-4 < _relative(ours, theirs) < 1e-2
