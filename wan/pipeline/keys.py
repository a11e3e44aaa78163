"""What determines a run of the pipeline, and each of its beginnings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import __version__
from ..checkpoint import Checkpoint
from ..plan import RunPlan
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
    if pipeline.memory.int8:  # the other designs give the same numbers
        common["keys and values"] = "int8"
    if pipeline.kernels.changes():
        common["kernels"] = pipeline.kernels.changes()

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

    branches = branch_points(plan.run, plan.solver)
    return RunKeys(run=name(plan.schedule.steps), branches={step: name(step) for step in branches})


def branch_points(run: RunPlan, solver: str) -> list[int]:
    """Steps done when a stage has run its last step and no later one was evaluated."""
    steps, sigmas = range(run.schedule.steps), run.schedule.sigmas
    latest = [
        max(run.stage_of(level) for level in evaluated(solver, sigmas, step)) for step in steps
    ]
    return [step for step in steps[1:] if latest[step] > latest[step - 1]]


def _files(checkpoint: Checkpoint) -> list[list[object]]:
    return [_file(path) for path in sorted({info.file for info in checkpoint.tensors.values()})]


def _file(path: Path) -> list[object]:
    told = path.stat()
    return [path.name, told.st_size, told.st_mtime_ns]
