"""What determines a run of the pipeline, and each of its beginnings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import __version__
from ..checkpoint import Checkpoint
from ..solvers import evaluated
from ..state import RunKeys, run_key
from .request import Plan, Request

if TYPE_CHECKING:
    from .system import Pipeline


def name_run(pipeline: Pipeline, request: Request, plan: Plan) -> RunKeys:
    """The names of a run and of its beginnings up to each change of phases.

    A beginning is determined by everything but what only later phases use; the whole schedule is part of
    it, because solvers look ahead. A file counts by its name, size and time of change.

    Raises:
        OSError: a file is not there any more.
    """
    device = pipeline.device
    common: dict[str, object] = {
        "versions": [__version__, torch.__version__],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(pipeline.dtype),
        "text": [_files(pipeline.text), request.prompt, request.negative_prompt],
        "noise": [request.noise, request.seed, list(plan.shape)],
        "solver": plan.solver,
        "sigmas": plan.schedule.sigmas,
        "timesteps": plan.schedule.timesteps,
    }

    def name(until: int) -> str:
        phases = []
        for index, phase in enumerate(plan.phases):
            steps = [step for step in plan.run.steps_of(index) if step < until]
            if not steps:
                continue
            used = [
                [_file(lora.section.path), strength]
                for lora, strength in pipeline.loras[phase.expert]
            ]
            phases.append(
                {
                    "steps": [steps[0], steps[-1]],
                    "expert": _files(pipeline.experts[phase.expert]),
                    "loras": [phase.loras, used],
                    "guidance": phase.guidance.points,
                }
            )
        return run_key({**common, "until": until, "phases": phases})

    return RunKeys(
        run=name(plan.schedule.steps), branches={step: name(step) for step in branch_points(plan)}
    )


def branch_points(plan: Plan) -> list[int]:
    """Steps done when a phase has run its last step and no later one was evaluated."""
    steps = range(plan.schedule.steps)
    latest = [
        max(
            plan.run.stage_of(level) for level in evaluated(plan.solver, plan.schedule.sigmas, step)
        )
        for step in steps
    ]
    return [step for step in steps[1:] if latest[step] > latest[step - 1]]


def _files(checkpoint: Checkpoint) -> list[list[object]]:
    return [_file(path) for path in sorted({info.file for info in checkpoint.tensors.values()})]


def _file(path: Path) -> list[object]:
    told = path.stat()
    return [path.name, told.st_size, told.st_mtime_ns]
