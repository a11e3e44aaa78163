"""Solvers of flow matching: one signature, one table.

A solver advances ``x`` from ``sigmas[step]`` to ``sigmas[step + 1]`` with one velocity evaluation
(Heun: two). ``velocity`` is ``noise - clean``, so the clean prediction is ``x - sigma * velocity``.

Scalars are 0-dim float32 tensors on the CPU, computed from the float32 sigmas in the order of the
official code. Near sigma 1 float32 is coarse for ``ln((1 - sigma) / sigma)``; better precision
would give other numbers than every published Wan clip. ``x`` and the state are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .schedule import Velocity as Velocity
from .schedule import half_log_snr

MAX_ORDER = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SolverState:
    """What a solver remembers between two steps; ``SolverState()`` is the start of a run.

    Immutable, and nothing but tensors and ints: saving the fields and building the object again
    resumes a run bit for bit.

    Attributes:
        history: clean predictions of the latest steps, newest last, each (B, C, T, H, W) float32.
        last: UniPC only: the corrected sample from which the latest step was taken.
        order: UniPC only: order of the latest step, 0 before the first.
        seed: LCM only: of the noise it adds, 0 to 2**64 - 1. A run of any solver keeps it.
    """

    history: tuple[Tensor, ...] = ()
    last: Tensor | None = None
    order: int = 0
    seed: int = 0


START = SolverState()

Solver = Callable[[Velocity, Tensor, Tensor, int, SolverState], tuple[Tensor, SolverState]]
"""``(velocity, x, sigmas (N+1,), step in 0..N-1, state) -> (x_next, state_next)``."""


class _Interval(NamedTuple):
    """Scalars of the way from one noise level to the next."""

    ratio: Tensor  # sigma_next / sigma
    gain: Tensor  # (1 - sigma_next) * expm1(-width); negative
    width: Tensor  # growth of the half log-SNR


def _interval(sigmas: Tensor, step: int) -> _Interval:
    sigma, sigma_next = sigmas[step], sigmas[step + 1]
    width = half_log_snr(sigma_next) - half_log_snr(sigma)
    return _Interval(sigma_next / sigma, (1 - sigma_next) * torch.expm1(-width), width)


def _position(sigmas: Tensor, step: int, origin: int, width: Tensor) -> Tensor:
    """Where an older level lies, in units of ``width`` from level ``origin``; negative."""
    return (half_log_snr(sigmas[step]) - half_log_snr(sigmas[origin])) / width


def _prepare(sigmas: Tensor, step: int) -> Tensor:
    """``sigmas`` where scalars are computed; ValueError if there is no such step."""
    steps = sigmas.numel() - 1
    if not 0 <= step < steps:
        raise ValueError(f"step={step} does not exist in {steps} steps; use 0 to {steps - 1}")
    return sigmas.to(device="cpu", dtype=torch.float32)


def _denoise(velocity: Velocity, x: Tensor, sigma: Tensor) -> Tensor:
    return x - sigma * velocity(x, sigma.item()).float()


def _order(sigmas: Tensor, step: int, state: SolverState) -> int:
    """Two, but one where there is no history yet and on the last step, where it would explode."""
    return min(MAX_ORDER, sigmas.numel() - 1 - step, len(state.history) + 1)


def _predict(
    x: Tensor, denoised: Tensor, sigmas: Tensor, step: int, order: int, state: SolverState
) -> Tensor:
    """The step common to UniP-2 (bh2) and DPM-Solver++ 2M (midpoint): they are one formula."""
    ratio, gain, width = _interval(sigmas, step)
    x_next = ratio * x - gain * denoised
    if order == 1:
        return x_next
    slope = (state.history[-1] - denoised) / _position(sigmas, step - 1, step, width)
    return x_next - gain * (0.5 * slope)


def _correct(denoised: Tensor, sigmas: Tensor, step: int, state: SolverState) -> Tensor:
    """UniC (bh2): retake the previous step now that the prediction at its end is known."""
    assert state.last is not None
    before = state.history[-1]
    ratio, gain, width = _interval(sigmas, step - 1)
    base = ratio * state.last - gain * before
    change = denoised - before
    if state.order == 1:
        return base - gain * (0.5 * change)
    older = _position(sigmas, step - 2, step - 1, width)
    slope = (state.history[-2] - before) / older
    # The 2x2 system [[1, 1], [older, 1]] rho = (first, second), solved in closed form.
    e = torch.expm1(-width)
    phi = e / -width - 1
    first = phi / e
    second = 2 * (phi / -width - 0.5) / e
    rho_slope = (second - first) / (older - 1)
    return base - gain * (rho_slope * slope + (first - rho_slope) * change)


def euler(
    velocity: Velocity, x: Tensor, sigmas: Tensor, step: int, state: SolverState
) -> tuple[Tensor, SolverState]:
    """Explicit Euler, first order (Euler 1768; DDIM is the same step under flow matching)."""
    sigmas = _prepare(sigmas, step)
    sigma = sigmas[step]
    v = velocity(x, sigma.item()).float()
    x_next = x + (sigmas[step + 1] - sigma) * v
    return x_next, replace(state, history=(x - sigma * v,))


def heun(
    velocity: Velocity, x: Tensor, sigmas: Tensor, step: int, state: SolverState
) -> tuple[Tensor, SolverState]:
    """Heun's trapezoidal rule, second order (Heun 1900; arXiv 2206.00364): Euler, then once more.

    The mean of the velocities at both ends of the step. A step to level 0 is Euler's: there is no
    network at 0. The clean prediction it remembers is the one at the start of the step.
    """
    sigmas = _prepare(sigmas, step)
    sigma, sigma_next = sigmas[step], sigmas[step + 1]
    v = velocity(x, sigma.item()).float()
    x_next = x + (sigma_next - sigma) * v
    if sigma_next > 0:
        mean = 0.5 * (v + velocity(x_next, sigma_next.item()).float())
        x_next = x + (sigma_next - sigma) * mean
    return x_next, replace(state, history=(x - sigma * v,))


def dpmpp_2m(
    velocity: Velocity, x: Tensor, sigmas: Tensor, step: int, state: SolverState
) -> tuple[Tensor, SolverState]:
    """DPM-Solver++ 2M, midpoint, second order (arXiv 2211.01095), as in the official code."""
    sigmas = _prepare(sigmas, step)
    denoised = _denoise(velocity, x, sigmas[step])
    x_next = _predict(x, denoised, sigmas, step, _order(sigmas, step, state), state)
    return x_next, replace(state, history=(denoised,))


def unipc(
    velocity: Velocity, x: Tensor, sigmas: Tensor, step: int, state: SolverState
) -> tuple[Tensor, SolverState]:
    """UniPC-2, B2(h), clean prediction (arXiv 2302.04867), as in the official code.

    The prediction is made at the uncorrected sample; the correction reuses it, so a step costs one
    velocity. The last step is first order and lands on the clean prediction.
    """
    sigmas = _prepare(sigmas, step)
    denoised = _denoise(velocity, x, sigmas[step])
    if state.last is not None:
        x = _correct(denoised, sigmas, step, state)
    order = _order(sigmas, step, state)
    x_next = _predict(x, denoised, sigmas, step, order, state)
    history = (*state.history, denoised)[-MAX_ORDER:]
    return x_next, replace(state, history=history, last=x, order=order)


def lcm(
    velocity: Velocity, x: Tensor, sigmas: Tensor, step: int, state: SolverState
) -> tuple[Tensor, SolverState]:
    """The step of consistency models (arXiv 2310.04378, 2405.14867): predict clean, add fresh noise.

    Stochastic: for networks distilled to predict the clean clip at once, on few levels. The noise of
    a step depends on ``state.seed`` and ``step`` alone. The step to level 0 adds none.
    """
    sigmas = _prepare(sigmas, step)
    sigma_next = sigmas[step + 1]
    denoised = _denoise(velocity, x, sigmas[step])
    after = replace(state, history=(denoised,))
    if sigma_next == 0:
        return denoised, after
    return (1 - sigma_next) * denoised + sigma_next * _fresh_noise(x, state.seed, step), after


def _fresh_noise(like: Tensor, seed: int, step: int) -> Tensor:
    """Standard normal noise of ``step``, shaped like ``like``, drawn on the CPU in float32."""
    # SplitMix64: torch's CPU generator takes 32 bits of a seed, and seed + step would give
    # neighbouring seeds the same noise one step apart.
    mixed = (seed + (step + 1) * 0x9E3779B97F4A7C15) % 2**64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> shift)) * factor % 2**64
    generator = torch.Generator("cpu").manual_seed(mixed ^ (mixed >> 31))
    return torch.randn(like.shape, generator=generator, dtype=torch.float32).to(like.device)


SOLVERS: dict[str, Solver] = {
    "unipc": unipc,
    "dpm++": dpmpp_2m,
    "euler": euler,
    "heun": heun,
    "lcm": lcm,
}

EVALUATIONS = {"unipc": 1, "dpm++": 1, "euler": 1, "heun": 2, "lcm": 1}
"""Velocity evaluations of a step: at its first level, then at the levels after it, but none at 0."""


def evaluated(name: str, sigmas: Tensor, step: int) -> list[float]:
    """The levels of ``sigmas`` (N+1,) at which ``step`` of solver ``name`` evaluates the velocity."""
    get_solver(name)
    return [level for level in sigmas[step : step + EVALUATIONS[name]].tolist() if level > 0]


def get_solver(name: str) -> Solver:
    """The solver called ``name``; raises ValueError that lists the known ones."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; use one of {', '.join(SOLVERS)}")
    return SOLVERS[name]
