"""``plan``: what a workflow of ComfyUI will run, and what it will take, before it runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoint import BUNDLED, Checkpoint, family_defaults, open_checkpoint
from ..config import T2V_A14B, SamplingConfig
from ..cost import (
    SAMPLING,
    Circumstances,
    Forecast,
    Networks,
    advice,
    forecast_lines,
    make_forecast,
    quantity,
    read_networks,
    time_block,
)
from ..experts import check_boundary
from ..files import shown
from ..guidance import Guidance
from ..plan import RunPlan, StageSpec, describe
from ..presets import get_preset
from ..recipes import host_sigmas
from ..schedule import SCHEDULES, Schedule, custom_schedule, make_schedule, parse_timesteps
from ..shapes import LatentShape, latent_shape
from ..solvers import SOLVERS
from ..switch import Switch
from ..workflow import FoundRun, GridUse, StageUse, find_runs, read_workflow
from .bar import Bar
from .device import add_device, torch_device
from .memory import add_memory, choose_memory, streamed_bytes

FOLDERS = ("", "diffusion_models", "unet", "text_encoders", "clip", "vae", "vae_approx", "loras")
"""Where below a models folder a file of a name may lie."""
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A workflow, and where its files lie."""
    parser.add_argument("workflow", type=Path, help="JSON of ComfyUI, in UI or API format")
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="FOLDER",
        help="ComfyUI, its models folder, or any folder with weights; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--time", action="store_true",
        help="time one block of random weights of the real shape, to foretell seconds",
    )  # fmt: skip
    add_device(parser)
    add_memory(parser)
    parser.add_argument(
        "--dtype",
        choices=list(DTYPES),
        default="bfloat16",
        help="of the experts' computation, default bfloat16",
    )


def run(given: argparse.Namespace, bar: Bar) -> None:
    """Print the plan of each run in the workflow.

    Raises:
        OSError: the workflow cannot be read.
        ValueError: it holds no run of ours, or one that cannot run; one sentence says why.
    """
    runs = find_runs(read_workflow(given.workflow))
    device = torch_device(given.device)
    dtype = DTYPES[given.dtype]
    for number, found in enumerate(runs):
        if number:
            print()
        if len(runs) > 1:
            print(f"run {number + 1} of {len(runs)}: node {found.node.id} ({found.node.title})")
        files = _Files(given.models)
        networks, own = _networks(found, files, dtype, device.type)
        found = settled(found, own)
        plan = _planned(found.stages, _schedule(found), found.shift, own)
        shape, batch = _shape(found, own, files.notes)
        odd = advice(plan, _circumstances(found, own, shape))
        print(describe(plan.noted(*files.notes, *odd)))
        measured = None
        if given.time:
            bar.show("time one block", 0, 1)
            measured = time_block(networks.transformer, shape, dtype, device)
            bar.show("time one block", 1, 1)
        known = found.solver if found.solver in SOLVERS else "euler"
        choice = choose_memory(
            given.memory, networks, device, shape, solver=known, streamed=given.stream != "never"
        )
        networks = replace(networks, memory=choice.memory)
        forecast = make_forecast(
            plan, networks, shape, solver=known, batch=batch, measured=measured
        )
        print("\n".join(forecast_lines(forecast)))
        print(choice.note or f"memory {choice.memory.name}: {choice.memory.told}")
        if given.stream != "never":
            print(_streamed(forecast, streamed_bytes(networks)))


def _streamed(forecast: Forecast, weights: int) -> str:
    working = next(phase.working for phase in forecast.phases if phase.name == SAMPLING)
    return (
        f"with blocks read from disk as they run: sampling about {quantity(weights + working, 'B')} "
        f"({quantity(weights, 'B')} weights + {quantity(working, 'B')})"
    )


def find_file(name: str, folders: Sequence[Path]) -> Path | None:
    """The weights a workflow calls ``name``: in ``folders`` as given by ``--models``, or bundled."""
    places = [place for folder in folders for place in (folder, folder / "models")]
    paths = (place / below / name for place in (*places, BUNDLED) for below in FOLDERS)
    return next((path for path in paths if path.exists()), None)


class _Files:
    """Weights by the names a workflow has for them; what is not found is noted."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders
        self.notes: list[str] = []

    def find(self, name: str | None, kind: str, what: str) -> Checkpoint | None:
        """The file of this name; None if it is not there, which is noted."""
        if name is None:
            return None
        path = find_file(name, self._folders)
        if path is not None:
            return open_checkpoint(path, kind)
        self.notes.append(
            f"the {what} {shown(name)} is not in the folders given by --models; taken as published"
        )
        return None


def _networks(
    found: FoundRun, files: _Files, dtype: torch.dtype, device: str
) -> tuple[Networks, SamplingConfig]:
    """What runs, and how it wants to be sampled."""
    names = dict.fromkeys(stage.model.file for stage in found.stages)
    experts = [files.find(name, "transformer", "expert") for name in names]
    if None in names:
        files.notes.append(
            "a MODEL comes from a node this command does not know; taken as published"
        )
    experts = (experts * 2)[: max(2, len(experts))]
    text = files.find(found.text, "text_encoder", "text encoder")
    vae = files.find(found.vae, "vae", "VAE")
    networks = read_networks(
        experts[0], experts[-1], text=text, vae=vae, dtype=dtype, device=device
    )
    given = next((expert for expert in experts if expert is not None), None)
    return networks, family_defaults(given) if given else T2V_A14B.sampling


def settled(found: FoundRun, own: SamplingConfig) -> FoundRun:
    """``found`` with the numbers of its preset in place of its widgets', for a model that wants ``own``.

    Raises:
        ValueError: an unknown preset, or one with another number of stages.
    """
    if found.preset is None:
        return found
    preset = get_preset(found.preset)
    told = preset.settings(own)
    switch = Switch("boundary", told.boundary)
    numbers = {
        "high noise": (told.guidance_high, switch),
        "low noise": (told.guidance_low, Switch()),
    }
    if preset.motion is not None:
        numbers["motion"] = preset.motion.guidance, Switch("timestep", preset.motion.until)
    if {stage.name for stage in found.stages} != numbers.keys():
        raise ValueError(
            f"preset {found.preset} has {len(numbers)} phases, node {found.node.id} "
            f"({found.node.title}) has {len(found.stages)}; connect or disconnect model_motion"
        )
    stages = tuple(
        replace(stage, guidance=Guidance.constant(scale), switch=place)
        for stage in found.stages
        for scale, place in (numbers[stage.name],)
    )
    grid = GridUse(name=told.schedule, steps=told.steps, shift=told.shift)
    return replace(
        found, stages=stages, grid=grid, shift=told.shift, solver=told.solver, preset=None
    )


def _planned(
    stages: Sequence[StageUse], schedule: Schedule, shift: float, own: SamplingConfig
) -> RunPlan:
    check_boundary(own.boundary)
    *others, last = stages
    specs = [
        StageSpec(
            name=stage.name,
            boundary=stage.switch.boundary(schedule, own.boundary),
            guidance=stage.guidance,
        )
        for stage in others
    ]
    specs.append(StageSpec(name=last.name, boundary=0.0, guidance=last.guidance))
    return RunPlan(schedule=schedule, shift=shift, stages=tuple(specs))


def _schedule(found: FoundRun) -> Schedule:
    grid = found.grid
    if grid.name == "list":
        return custom_schedule(parse_timesteps(grid.timesteps), name="list")
    if grid.name in SCHEDULES:
        return make_schedule(grid.name, steps=grid.steps, shift=grid.shift)
    sigmas = host_sigmas(grid.name.removesuffix(" (ComfyUI)"), grid.steps, grid.shift)
    levels: Callable[[], list[float]] = sigmas.tolist
    return Schedule(
        name=grid.name,
        sigmas=sigmas,
        timesteps=torch.tensor([1000 * level for level in levels()[:-1]], dtype=torch.float64),
    )


def _shape(found: FoundRun, own: SamplingConfig, notes: list[str]) -> tuple[LatentShape, int]:
    clip = found.clip
    if clip is None:
        notes.append(
            "the latent comes from a node this command does not know; taken as "
            f"{own.width}x{own.height}, {own.num_frames} frames"
        )
        return latent_shape(own.num_frames, own.height, own.width, channels=16), 1
    return latent_shape(clip.frames, clip.height, clip.width, channels=16), clip.batch


def _circumstances(found: FoundRun, own: SamplingConfig, shape: LatentShape) -> Circumstances:
    written = found.negative is not None and found.negative.strip() not in ("", own.negative_prompt)
    loras: dict[str, int] = {}
    for stage in found.stages:
        expert = stage.model.file or stage.name
        loras[expert] = max(loras.get(expert, 0), len(stage.model.loras))
    return Circumstances(own=own, shape=shape, fps=found.fps, negative=written, loras=loras)
