"""The sampling loop: one solver, one schedule, one trajectory, watched, resumable at every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .schedule import Schedule, Velocity
from .sentinel import FINE, PLAIN, Failure, Rung, Verdict, Watch, check, out_of_memory
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
        verdict: of the sentinel. On CUDA it may still be on its way, and a step that turns out bad is
            done and shown again; keep nothing before ``verdict.good``.
    """

    step: int
    total: int
    sigma: float
    x: Tensor
    denoised: Tensor
    state: SolverState
    verdict: Verdict = FINE


Callback = Callable[[Progress], None]


@torch.no_grad()
def sample(  # noqa: PLR0913 - a run is these, each by its name
    velocity: Velocity,
    noise: Tensor,
    schedule: Schedule,
    solver: Solver,
    *,
    callback: Callback | None = None,
    start: int = 0,
    state: SolverState = START,
    watch: Watch = PLAIN,
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
        watch: what is tried where a step fails. A run in which none does is the same with any.

    Returns:
        Clean latents (B, C, T, H, W) float32 on ``noise``'s device.

    Raises:
        ValueError: ``start`` out of range, a state without a run, or noise that is not finite.
        FloatingPointError: a step gave NaN, infinity or an impossible scale, and no rung of the
            ``watch`` helped; it names the step.
        torch.cuda.OutOfMemoryError: memory ran out, and no rung of the ``watch`` helped.
    """
    _check(noise, schedule, start, state)
    run = _Run(velocity, schedule, solver, watch)
    point = _Point(step=start, x=noise.float(), state=state)
    # Of the latest step, as long as its verdict is on its way: the next one is begun meanwhile, so
    # that the device is never without work, unless the watch would rather wait.
    late: _Step | None = None
    while point.step < schedule.steps or late is not None:
        waits = late is not None and (point.step == schedule.steps or point.step in watch.waits)
        new = None if waits else run.attempt(run.velocity, point)
        if late is not None and (failure := late.verdict.failure):
            step = run.again(late.before, failure)
        elif isinstance(new, Failure):
            step = run.again(point, new)
        elif new is None:
            late = None
            continue
        elif new.verdict.arrived and (failure := new.verdict.failure):
            step = run.again(point, failure)
        else:
            step = new
        late = None if step.verdict.arrived and step.verdict.good else step
        point = step.after
        if callback is not None:
            callback(run.progress(step))
    return point.x


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Point:
    """A run when ``step`` steps are done."""

    step: int
    x: Tensor
    state: SolverState


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Step:
    """A step that was taken, and the point it can be taken again from."""

    before: _Point
    after: _Point
    verdict: Verdict


class _Run:
    """How a run takes its steps."""

    def __init__(
        self, velocity: Velocity, schedule: Schedule, solver: Solver, watch: Watch
    ) -> None:
        self.velocity = velocity
        self._schedule, self._solver, self._watch = schedule, solver, watch

    def attempt(self, velocity: Velocity, point: _Point) -> _Step | Failure:
        """One step; a failure if memory runs out and there is something to try about that."""
        sigmas = self._schedule.sigmas
        try:
            x, state = self._solver(velocity, point.x, sigmas, point.step, point.state)
        except torch.cuda.OutOfMemoryError as error:
            if not self._watch.relief:
                raise
            return out_of_memory(error)
        verdict = check(state.history[-1], sigmas[point.step + 1].item(), x=x)
        after = _Point(step=point.step + 1, x=x, state=state)
        return _Step(before=point, after=after, verdict=verdict)

    def again(self, point: _Point, failure: Failure) -> _Step:
        """The step from ``point``, which failed, by the rungs of the watch; raises if none helps."""

        def attempt(rung: Rung) -> _Step | Failure:
            velocity = rung.build()
            step = self.attempt(velocity, point)
            if isinstance(step, Failure):
                return step
            if not (found := step.verdict.failure) and rung in self._watch.relief:
                self.velocity = velocity
            return found or step

        where = f"step {point.step + 1} of {self._schedule.steps}"
        where += f" (sigma {self._schedule.sigmas[point.step].item():.4f})"
        result = self._watch.again(failure, attempt, where)
        if not isinstance(result, Failure):
            return result[0]
        raise result.ending(where, self._rescue(point))

    def _rescue(self, point: _Point) -> str:
        """Let the watch keep what good steps made; what it says of that."""
        if self._watch.rescue is None:
            return ""
        denoised = point.state.history[-1] if point.state.history else None
        return self._watch.rescue(point.step, point.x, denoised)

    def progress(self, step: _Step) -> Progress:
        """What the callback is told of ``step``."""
        done = step.after
        return Progress(
            step=done.step,
            total=self._schedule.steps,
            sigma=self._schedule.sigmas[step.before.step].item(),
            x=done.x,
            denoised=done.state.history[-1],
            state=done.state,
            verdict=step.verdict,
        )


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
