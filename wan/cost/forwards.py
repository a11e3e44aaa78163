"""How often each stage's network is called in a run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..guidance import needs_uncond
from ..plan import RunPlan
from ..solvers import evaluated


@dataclass(frozen=True, kw_only=True, slots=True)
class StageForwards:
    """The calls of one stage.

    Attributes:
        name: of the stage.
        steps: solver steps that begin on it.
        forwards: calls of its network with one prompt; a guided evaluation is two.
    """

    name: str
    steps: int
    forwards: int


def evaluated_levels(solver: str, sigmas: Tensor) -> list[float]:
    """The noise levels at which ``solver`` evaluates the network on ``sigmas`` (N+1,), in order."""
    steps = range(sigmas.numel() - 1)
    return [level for step in steps for level in evaluated(solver, sigmas, step)]


def count_forwards(plan: RunPlan, levels: list[float]) -> tuple[StageForwards, ...]:
    """The calls of every stage of ``plan`` in a run that evaluates at the noise ``levels``.

    A stage that has been left is not called again, as in :func:`~.experts.route`.
    """
    calls, current = [0] * len(plan.stages), 0
    for sigma in levels:
        current = max(current, plan.stage_of(sigma))
        calls[current] += 1 + needs_uncond(plan.stages[current].guidance.at(sigma))
    return tuple(
        StageForwards(name=stage.name, steps=len(plan.steps_of(index)), forwards=calls[index])
        for index, stage in enumerate(plan.stages)
    )
