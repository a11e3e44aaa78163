"""The manifest of a run of the library."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .. import __version__
from ..checkpoint import Checkpoint
from ..manifest import LoraMark, Manifest, Mark, StageRecord, file_mark, files_mark
from ..noise import draw_noise
from ..pipeline import Pipeline, Plan, Request
from ..state import tensor_digest

ATTENTION = "pytorch"


def record(pipeline: Pipeline, request: Request, plan: Plan) -> Manifest:
    """What will make the latents of ``request``; reads stripes of the weight files.

    Raises:
        OSError: a file cannot be read.
    """
    stages = []
    for phase, spec in zip(plan.phases, plan.run.stages, strict=True):
        loras = [
            LoraMark(file=file_mark(lora.section.path), strength=strength * phase.loras)
            for lora, strength in pipeline.loras[phase.expert]
        ]
        stages.append(
            StageRecord(
                name=spec.name,
                boundary=spec.boundary,
                guidance=spec.guidance.points,
                weights=_mark(pipeline.experts[phase.expert]),
                loras=tuple(loras),
                dtype=str(pipeline.dtype).removeprefix("torch."),
            )
        )
    device, shape, schedule = pipeline.device, (1, *plan.shape), plan.schedule
    return Manifest(
        stages=tuple(stages),
        sigmas=tuple(schedule.sigmas.tolist()),
        timesteps=tuple(schedule.timesteps.tolist()),
        schedule=schedule.name,
        shift=float(plan.run.shift),
        solver=plan.solver,
        seed=request.seed,
        noise=request.noise,
        shape=shape,
        attention=", ".join((*_attention(pipeline), *pipeline.memory.changes)),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        inputs={"noise": tensor_digest(draw_noise(shape, request.seed, request.noise))},
        texts={"positive": request.prompt, "negative": request.negative_prompt},
        files={"text_encoder": _mark(pipeline.text), "vae": _mark(pipeline.vae)},
        versions={"wan": __version__, "torch": torch.__version__},
    )


def with_result(manifest: Manifest, latents: Tensor) -> Manifest:
    """The manifest of a run that is done: it knows its raw latents (B, C, T, h, w)."""
    return replace(manifest, result=tensor_digest(latents.float()))


def _attention(pipeline: Pipeline) -> tuple[str, ...]:
    changes = pipeline.kernels.changes()
    return changes if pipeline.kernels.attention in changes else (ATTENTION, *changes)


def _mark(checkpoint: Checkpoint) -> Mark:
    return files_mark(checkpoint.path.name, checkpoint.files)
