"""``run``: a workflow of ComfyUI without ComfyUI, for graphs of this pack's nodes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import PARTS
from ..config import SamplingConfig
from ..files import shown
from ..noise import LAYOUTS
from ..pipeline import LoraUse, Phase, Pipeline, Request
from ..queue import Catalog, changed, changed_canvas, parse_settings, read_changes
from ..schedule import SCHEDULES
from ..solvers import SOLVERS
from ..video import MP4_FORMATS
from ..workflow import (
    AUTO_LORA,
    PRIMITIVES,
    WIDGETS,
    FoundRun,
    Node,
    StageUse,
    Workflow,
    find_runs,
    parse_workflow,
    read_canvas,
)
from .bar import Bar
from .device import add_device, torch_device
from .generate import Wanted, make_clip
from .kernels import add_kernels, with_kernels
from .memory import add_memory, with_memory
from .plan import find_file, settled

COMPILE = "WanExpertsCompile"
VIDEO, ENCODE, LOADER = "WanExpertsDecodeToVideo", "WanExpertsTextEncode", "WanExpertsLoader"
ONE_OF_EACH = (
    LOADER, "WanExpertsTextEncoderLoader", "WanExpertsVAELoader", ENCODE, "WanExpertsEmptyLatent",
)  # fmt: skip
"""Nodes a graph needs, once."""
KNOWN = (
    *ONE_OF_EACH, VIDEO, COMPILE, "WanExpertsLora", "WanExpertsSampler", "WanExpertsGuider", "WanExpertsStage",
    "WanExpertsStagesGuider", "WanExpertsSchedule", "WanExpertsSolver", "SamplerCustomAdvanced",
    "RandomNoise", "LoraLoaderModelOnly", *PRIMITIVES,
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A workflow, and where its files lie."""
    parser.add_argument("workflow", type=Path, help="JSON of ComfyUI, in UI or API format")
    parser.add_argument("--out", required=True, type=Path, help="the mp4 to write")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="NAME=VALUE",
        help="prompt, negative, seed, an input's name, or node.input; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--models", type=Path, action="append", default=[], metavar="FOLDER",
        help="ComfyUI, its models folder, or any folder with weights; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--save-latents", type=Path, metavar="FILE", help="raw latents, written before decoding"
    )
    add_device(parser)
    add_memory(parser)
    add_kernels(parser)
    parser.add_argument("--fresh", action="store_true", help="start anew instead of going on")


def run(given: argparse.Namespace, bar: Bar) -> None:
    """One clip; raises before any weight is read if the graph cannot be run here.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: a node this library does not know, or settings that cannot work.
    """
    data = read_canvas(given.workflow)
    try:
        workflow = parse_workflow(data)
        changes, _ = read_changes(workflow, parse_settings(given.settings), Catalog({}))
        workflow = changed(workflow, changes)
        graph = read_graph(workflow)
    except ValueError as error:
        raise ValueError(f"{shown(given.workflow)}: {error}") from error
    pipeline = _open(graph, given)
    request, loras = read_request(graph, pipeline.defaults, given.models)
    canvas = changed_canvas(data, changes, WIDGETS)
    wanted = Wanted(
        out=given.out,
        latents=given.save_latents,
        fresh=given.fresh,
        fps=graph.run.fps,
        format=str(workflow.value(graph.video, "format", Wanted.format)),
        crf=int(workflow.value(graph.video, "crf", Wanted.crf)),
        tags={"prompt": workflow.api(), **({"workflow": canvas} if canvas else {})},
    )
    if wanted.format not in MP4_FORMATS:
        raise ValueError(f"format {wanted.format} makes a folder; --set format=h264-mp4")
    pipeline = with_kernels(pipeline, given, compiling=bool(graph.workflow.of(COMPILE)))
    pipeline = with_memory(pipeline, pipeline.plan(request), given.memory)
    make_clip(pipeline, request, wanted, bar, loras, _is_lenient(graph))


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """What of a workflow makes its clip: the nodes before ``video``, and the run among them."""

    workflow: Workflow
    video: Node
    run: FoundRun


def read_graph(workflow: Workflow) -> Graph:
    """The one clip of a workflow.

    Raises:
        ValueError: none or several, or nodes that only ComfyUI can run.
    """
    video = _only(workflow, VIDEO)
    part = Workflow({node.id: node for node in _before(workflow, video)})
    strangers = [f"{n.id} ({shown(n.title)})" for n in part.nodes.values() if n.kind not in KNOWN]
    if strangers:
        raise ValueError(
            f"only ComfyUI can run node {', '.join(strangers)}; use `python -m wan queue`, or nodes of "
            "this pack"
        )
    for kind in ONE_OF_EACH:
        _only(part, kind)
    source = part.source(video, "samples")
    runs = [found for found in find_runs(part) if source == (found.node, 0)]
    if not runs or len(find_runs(part)) > 1:
        raise ValueError(
            f"node {video.id} ({shown(video.title)}) does not decode the one run of the workflow; connect "
            "it to the sampler"
        )
    encode, node = _only(part, ENCODE), runs[0].node
    guider = part.source(node, "guider")
    node = guider[0] if guider else node
    if [part.source(node, side) for side in ("positive", "negative")] != [(encode, 0), (encode, 1)]:
        raise ValueError(
            f"node {node.id} ({shown(node.title)}) does not get both texts of node {encode.id} "
            f"({shown(encode.title)}); connect positive and negative to it"
        )
    return Graph(workflow=part, video=video, run=runs[0])


def read_request(
    graph: Graph, own: SamplingConfig, folders: Sequence[Path]
) -> tuple[Request, list[LoraUse]]:
    """What a graph asks of a model that wants ``own``, and its LoRAs, whose files are in ``folders``.

    Raises:
        ValueError: something that only ComfyUI can do.
    """
    workflow, run = graph.workflow, settled(graph.run, own)
    clip = run.clip
    if clip is None or clip.batch != 1:
        raise ValueError("batch_size is not 1; make one clip after the other with other seeds")
    if run.grid.name not in SCHEDULES or run.solver not in SOLVERS:
        raise ValueError(
            f"scheduler {shown(run.grid.name)} with sampler {shown(run.solver)} is for ComfyUI alone; "
            f"use one of {', '.join(SCHEDULES)} with one of {', '.join(SOLVERS)}"
        )
    used, phases = _phases(graph, run.stages)
    encode = _only(workflow, ENCODE)
    sampling = replace(
        own,
        steps=run.grid.steps,
        shift=run.grid.shift,
        solver=run.solver,
        schedule=run.grid.name,
        num_frames=clip.frames,
        height=clip.height,
        width=clip.width,
        negative_prompt=_text(workflow, encode, "negative"),
    )
    request = Request(
        prompt=_text(workflow, encode, "positive"),
        sampling=sampling,
        seed=_seed(workflow, run.node),
        noise=_noise(workflow, run.node),
        phases=phases,
    )
    return request, _loras(used, folders)


def _phases(
    graph: Graph, stages: Sequence[StageUse]
) -> tuple[dict[str, StageUse], tuple[Phase, ...]]:
    """The stages as phases, and for each expert a stage with all its LoRAs."""
    names = _expert_names(graph)
    used: dict[str, StageUse] = {}
    for stage in stages:
        if stage.model.file not in names:
            raise ValueError(
                f"the MODEL of the {stage.name} stage is of no loader; connect it to one"
            )
        part = names[stage.model.file]
        if part not in used or len(stage.model.loras) > len(used[part].model.loras):
            used[part] = stage
    phases = []
    for stage in stages:
        part = names[str(stage.model.file)]
        if stage.model.loras not in ((), used[part].model.loras):
            raise ValueError(
                f"stages of the {PARTS[part]} have different LoRAs; give each stage the same or none"
            )
        strength = 1.0 if stage.model.loras == used[part].model.loras else 0.0
        phases.append(
            Phase(
                expert=part,
                guidance=stage.guidance,
                switch=stage.switch,
                loras=strength,
                called=stage.name,
            )
        )
    return used, tuple(phases)


def _expert_names(graph: Graph) -> dict[str, str]:
    """Name of a weight file -> ``high`` or ``low``."""
    loader = _only(graph.workflow, LOADER)
    return {
        str(graph.workflow.value(loader, f"model_{part}_noise")): part for part in ("high", "low")
    }


def _loras(used: dict[str, StageUse], folders: Sequence[Path]) -> list[LoraUse]:
    found = []
    for part, stage in used.items():
        for lora in stage.model.loras:
            if lora.file == AUTO_LORA:
                raise ValueError(
                    f"a LoRA of the {PARTS[part]} is auto, which ComfyUI makes out; choose it by its name"
                )
            if lora.strength is None:
                raise ValueError(
                    f"the strength of {shown(lora.file)} is only known in ComfyUI; put it in the widget"
                )
            if lora.strength:
                path = _file(lora.file, "LoRA", folders)
                found.append(LoraUse(path=path, strength=lora.strength, part=part))
    return found


def _open(graph: Graph, given: argparse.Namespace) -> Pipeline:
    names = {part: name for name, part in _expert_names(graph).items()}
    names |= {"vae": str(graph.run.vae), "text": str(graph.run.text)}
    if len(names) < len(PARTS):
        raise ValueError("both experts are one file; choose the file of each in the loader")
    paths = {part: _file(name, PARTS[part], given.models) for part, name in names.items()}
    return Pipeline.load(
        high=paths["high"],
        low=paths["low"],
        vae=paths["vae"],
        text=paths["text"],
        device=torch_device(given.device),
        stream=given.stream,
        allow_mismatch=_is_lenient(graph),
    )


def _file(name: str, what: str, folders: Sequence[Path]) -> Path:
    path = find_file(name, folders)
    if path is None:
        raise FileNotFoundError(
            f"the {what} {shown(name)} is not in the folders given by --models; add its folder"
        )
    return path


def _is_lenient(graph: Graph) -> bool:
    """Whether any loader allows a mismatch."""
    nodes = graph.workflow.of(LOADER, "WanExpertsLora")
    return any(graph.workflow.value(node, "allow_mismatch", False) is True for node in nodes)


def _text(workflow: Workflow, encode: Node, name: str) -> str:
    return str(workflow.value(encode, name, ""))


def _noise(workflow: Workflow, node: Node) -> str:
    """Whose order the initial noise is drawn in; of SamplerCustomAdvanced, ``noise`` is a socket."""
    own = workflow.source(node, "noise") is None
    return str(workflow.value(node, "noise", LAYOUTS[0])) if own else LAYOUTS[0]


def _seed(workflow: Workflow, node: Node) -> int:
    if node.kind == "SamplerCustomAdvanced":
        source = workflow.source(node, "noise")
        if source is None:
            raise ValueError(
                f"node {node.id} ({shown(node.title)}) has no noise; connect RandomNoise"
            )
        node = source[0]
    return int(workflow.value(node, "noise_seed"))


def _only(workflow: Workflow, kind: str) -> Node:
    found = workflow.of(kind)
    if len(found) != 1:
        raise ValueError(
            f"the workflow has {len(found) or 'no'} {kind}; `run` makes one clip with one, "
            "`python -m wan queue` runs any graph in ComfyUI"
        )
    return found[0]


def _before(workflow: Workflow, last: Node) -> list[Node]:
    """``last`` and all nodes it depends on, in the order of the file."""
    wanted, todo = set[str](), [last]
    while todo:
        node = todo.pop()
        if node.id not in wanted:
            wanted.add(node.id)
            sources = (workflow.source(node, name) for name in node.inputs)
            todo += [source[0] for source in sources if source is not None]
    return [node for node in workflow.nodes.values() if node.id in wanted]
