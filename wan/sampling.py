"""The sampling loop: one solver, one schedule, one trajectory, resumable at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule, Velocity
from .solvers import START, Solver, SolverState


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Progress:
    """A run after ``step`` steps: what to show, and all that is needed to go on from here.

    Resume with ``sample(velocity, progress.x, schedule, solver, start=progress.step,
    state=progress.state)``. The tensors are the run's own, not copies: do not write into them.

    Attributes:
        step: steps done, 1..total.
        total: steps of the whole run.
        sigma: noise level at which the step evaluated the network.
        x: (B, C, T, H, W) float32 after the step, at noise level ``schedule.sigmas[step]``.
        denoised: clean prediction of the step, same shape.
        state: the solver's memory.
    """

    step: int
    total: int
    sigma: float
    x: Tensor
    denoised: Tensor
    state: SolverState


Callback = Callable[[Progress], None]


@torch.no_grad()
def sample(
    velocity: Velocity,
    noise: Tensor,
    schedule: Schedule,
    solver: Solver,
    *,
    callback: Callback | None = None,
    start: int = 0,
    state: SolverState = START,
) -> Tensor:
    """Integrate from noise to clean latents. Runs under ``torch.no_grad``: no gradients come out.

    Args:
        velocity: ``(x, sigma) -> velocity``; for two experts, :func:`wan.experts.route`.
        noise: (B, C, T, H, W) standard normal noise, taken as it is; to resume, the saved ``x``.
        schedule: noise levels of the run.
        solver: one of ``wan.solvers.SOLVERS``.
        callback: called after each step; an exception it raises ends the run and reaches the
            caller. The latest ``Progress`` is then the place to resume from.
        start: first step to run, 0..N; ``N`` returns ``noise`` as it is.
        state: the solver's memory at ``start``. With the start state and ``start > 0`` a multistep
            solver warms up again, as if the run began there.

    Returns:
        Clean latents (B, C, T, H, W) float32 on ``noise``'s device.

    Raises:
        ValueError: ``start`` out of range, a state without a run, or noise that is not finite.
        FloatingPointError: a step gave NaN or infinity; it names the step.
    """
    _check(noise, schedule, start, state)
    x = noise.float()
    for step in range(start, schedule.steps):
        x, state = solver(velocity, x, schedule.sigmas, step, state)
        sigma = schedule.sigmas[step].item()
        # A NaN would survive all later steps and end as a black clip minutes from here.
        if not bool(torch.isfinite(x).all()):
            raise FloatingPointError(
                f"step {step + 1} of {schedule.steps} (sigma {sigma:.4f}) gave NaN or infinity; "
                "use a wider compute dtype (bfloat16 instead of float16) or check the weights"
            )
        if callback is not None:
            callback(
                Progress(
                    step=step + 1,
                    total=schedule.steps,
                    sigma=sigma,
                    x=x,
                    denoised=state.history[-1],
                    state=state,
                )
            )
    return x


def _check(noise: Tensor, schedule: Schedule, start: int, state: SolverState) -> None:
    if not 0 <= start <= schedule.steps:
        raise ValueError(
            f"start={start} is not within the {schedule.steps} steps; use 0 to {schedule.steps}"
        )
    if start == 0 and state.history:
        raise ValueError(
            "start=0 came with the solver state of a run under way; "
            "give the step it was saved at, or SolverState()"
        )
    for held in state.history:
        if held.shape != noise.shape:
            raise ValueError(
                f"the solver state has shape {tuple(held.shape)}, the latents "
                f"{tuple(noise.shape)}; resume with the latents saved beside the state"
            )
    if not bool(torch.isfinite(noise).all()):
        raise ValueError("the noise holds NaN or infinity; use standard normal noise")
