"""Two chained KSamplerAdvanced, ComfyUI's own way to run two experts, as one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch
from torch import Tensor

from ..keys.roles import HIGH, LOW, role_of
from ..solvers import SOLVERS
from ..workflow import Node, Workflow, parse_workflow
from .grids import HostSigmas, host_schedule
from .recipe import Recipe, boundary_of_step

SOURCE = "two chained KSamplerAdvanced"
KIND = "KSamplerAdvanced"
HOST_SHIFT = 8.0
"""ComfyUI's own shift of Wan models, without ModelSamplingSD3."""
PENULTIMATE = frozenset(("dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"))
"""Samplers for which KSamplerAdvanced makes one noise level more and drops the last but one."""
_OURS = {"uni_pc": "unipc", "uni_pc_bh2": "unipc", "dpmpp_2m": "dpm++", "euler": "euler"}
_EXACT = ("euler", "heun", "lcm")
"""The same formulas here and there."""
_ONE_STEP = frozenset(
    ("euler", "euler_ancestral", "heun", "dpm_2", "dpm_2_ancestral", "lcm", "ddim")
)
"""Samplers without a memory of earlier steps."""
_LOOK_AHEAD = frozenset((
    "heun", "heunpp2", "exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2", "dpm_2_ancestral",
    "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_sde_gpu", "seeds_2", "seeds_3",
))  # fmt: skip
"""Samplers that evaluate the network again within a step, at a lower noise level."""
_MODEL, _LATENT, _TEXT = ("model",), ("latent_image", "samples", "latent"), ("conditioning",)
"""Inputs through which MODELs, latents and conditionings come along a chain of nodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sampler:
    """What one KSamplerAdvanced is set to, and what its MODEL went through."""

    add_noise: bool
    seed: int
    steps: int
    cfg: float
    sampler: str
    scheduler: str
    start: int
    end: int
    leftover: bool
    shift: float | None
    role: str | None
    loras: tuple[str, ...]


def is_graph(content: object) -> bool:
    """Whether a JSON document looks like a graph of ComfyUI."""
    if not isinstance(content, dict):
        return False
    nodes = content["prompt"] if isinstance(content.get("prompt"), dict) else content
    held = list(nodes.values())
    return "nodes" in content or (
        bool(held) and all(isinstance(node, dict) and "class_type" in node for node in held)
    )


def read_ksamplers(content: Mapping[str, Any], sigmas_of: HostSigmas) -> Recipe:
    """The run of the one chain of two samplers in a graph of ComfyUI.

    Args:
        content: a workflow or a graph of the API format, decoded.
        sigmas_of: ComfyUI's schedulers.

    Raises:
        ValueError: there is not exactly one such chain, or a setting cannot be read.
    """
    pairs = [(graph, pair) for graph in _graphs(content) for pair in _pairs(graph)]
    if len(pairs) != 1:
        found = "no chain of two KSamplerAdvanced" if not pairs else f"{len(pairs)} of them"
        raise ValueError(
            f"the graph holds {found} that is active; paste one with exactly two, the first one's "
            "latent going into the second"
        )
    graph, (first, second) = pairs[0]
    high, low = _read(graph, first), _read(graph, second)
    shift = HOST_SHIFT if high.shift is None else high.shift
    sigmas, switch = _levels(high, low, shift, sigmas_of)
    schedule = host_schedule(f"ComfyUI {high.scheduler}", sigmas)
    solver = _OURS.get(high.sampler, high.sampler if high.sampler in SOLVERS else "unipc")
    width, height, frames = _size(graph, first)
    return Recipe(
        source=SOURCE,
        schedule=schedule,
        shift=shift,
        boundary=boundary_of_step(schedule, switch),
        guidance_high=high.cfg,
        guidance_low=low.cfg,
        solver=solver,
        host_sampler=high.sampler,
        seed=high.seed,
        width=width,
        height=height,
        num_frames=frames,
        prompt=_text(graph, first, "positive"),
        negative_prompt=_text(graph, first, "negative"),
    ).with_notes(*_mistakes(high, low), *_limits(high, low), *_models(high, low))


def _graphs(content: Mapping[str, Any]) -> Iterator[Workflow]:
    """The graph itself and each of its subgraphs, which hold what was last set inside them."""
    inside = content.get("definitions") or {}
    parts = [content, *(inside.get("subgraphs") or [])] if "nodes" in content else [content]
    for part in parts:
        alone = {key: value for key, value in part.items() if key != "definitions"}
        yield parse_workflow(alone)


def _before(graph: Workflow, node: Node, inputs: Sequence[str]) -> Iterator[Node]:
    """The nodes before ``node``, nearest first, along the first of ``inputs`` that is linked."""
    seen = {node.id}
    while found := next((s for name in inputs if (s := graph.source(node, name))), None):
        node = found[0]
        if node.id in seen:
            return
        seen.add(node.id)
        yield node


def _pairs(graph: Workflow) -> Iterator[tuple[Node, Node]]:
    """Samplers of which one feeds the other; two that were pasted alone are a pair, too."""
    samplers = graph.of(KIND)
    linked = [
        (before, node)
        for node in samplers
        for before in _before(graph, node, _LATENT)
        if before.kind == KIND
    ]
    if linked or len(samplers) != 2 or len(graph.nodes) != 2:
        yield from linked
        return
    first, second = sorted(samplers, key=lambda node: _integer(graph, node, "start_at_step", 0))
    yield first, second


def _read(graph: Workflow, node: Node) -> _Sampler:
    shift, role, loras = None, None, []
    for before in _before(graph, node, _MODEL):
        if before.kind == "ModelSamplingSD3" and shift is None:
            shift = _number(graph, before, "shift", 3.0)
        name = before.inputs.get("lora_name")
        if isinstance(name, str):
            loras.append(f"{name} at {_number(graph, before, 'strength_model', 1.0):g}")
        if isinstance(file := before.inputs.get("unet_name"), str):
            role = role_of(file.rpartition(".")[0])
    return _Sampler(
        add_noise=graph.value(node, "add_noise") != "disable",
        seed=_integer(graph, node, "noise_seed", 0),
        steps=_integer(graph, node, "steps", 20),
        cfg=_number(graph, node, "cfg", 8.0),
        sampler=str(graph.value(node, "sampler_name", "euler")),
        scheduler=str(graph.value(node, "scheduler", "simple")),
        start=_integer(graph, node, "start_at_step", 0),
        end=_integer(graph, node, "end_at_step", 10000),
        leftover=graph.value(node, "return_with_leftover_noise") == "enable",
        shift=shift,
        role=role,
        loras=tuple(loras),
    )


def _levels(
    high: _Sampler, low: _Sampler, shift: float, sigmas_of: HostSigmas
) -> tuple[Tensor, int]:
    """Noise levels of the joined run (N+1,) and how many of its steps are the first sampler's."""
    dropped = high.sampler in PENULTIMATE
    whole = sigmas_of(high.scheduler, high.steps + dropped, shift).detach().cpu().float()
    if dropped:
        whole = torch.cat([whole[:-2], whole[-1:]])
    end = min(low.end, len(whole) - 1)
    joined = whole[high.start : end + 1].clone()
    if not low.leftover:
        joined[-1] = 0.0
    return joined, min(high.end, end) - high.start


def _mistakes(high: _Sampler, low: _Sampler) -> Iterator[str]:
    """What the graph does that one run does not, in the order of the widgets."""
    if high.end <= high.start:
        yield "the first sampler runs no step, so that ComfyUI adds no noise at all; here there is noise"
    if not high.add_noise:
        yield "the first sampler has add_noise disabled: its run starts without noise of its own"
    if low.add_noise:
        yield "the second sampler adds noise again (add_noise is enabled); one run does not"
    if not high.leftover:
        yield (
            "the first sampler has return_with_leftover_noise disabled: it finishes the clip at the "
            "switch; one run goes on from the noise that is left"
        )
    if high.end != low.start:
        yield (
            f"the first sampler ends at step {high.end}, the second starts at {low.start}; here the "
            f"experts change at {high.end}"
        )
    for name in ("steps", "sampler", "scheduler", "shift"):
        one, other = getattr(high, name), getattr(low, name)
        # A template of ComfyUI holds 8.000000000000002.
        same = isclose(one, other) if isinstance(one, float) and other is not None else one == other
        if not same:
            yield f"{name} is {one} in the first sampler and {other} in the second; here it is {one}"
    if high.role == LOW or low.role == HIGH:
        yield "the file names say that the low-noise expert runs first; connect them the other way"


def _limits(high: _Sampler, low: _Sampler) -> Iterator[str]:
    """What cannot be the same."""
    if high.sampler not in _ONE_STEP:
        yield (
            f"two samplers forget at the switch what {high.sampler} knows of earlier steps, one run "
            "keeps it: a few steps after the switch differ"
        )
    if high.sampler in _LOOK_AHEAD:
        yield (
            f"{high.sampler} looks ahead within a step: in the last step before the switch one run asks "
            "the low-noise expert there, two samplers the high-noise one"
        )
    if high.sampler in ("uni_pc", "uni_pc_bh2"):
        yield (
            f"ComfyUI's {high.sampler} is not the official UniPC; for that use Wan Solver with unipc "
            "and the schedule unipc"
        )
    if high.sampler in PENULTIMATE:
        yield (
            f"KSamplerAdvanced makes {high.steps + 1} noise levels for {high.sampler} and drops the "
            "last but one; so are these"
        )
    if high.shift is None:
        yield f"no ModelSamplingSD3 is there, so the shift is ComfyUI's own, {HOST_SHIFT:g}"
    if high.sampler not in (*_OURS, *_EXACT):
        yield f"this library has no {high.sampler}; in ComfyUI the SAMPLER is that one"


def _models(high: _Sampler, low: _Sampler) -> Iterator[str]:
    for expert, sampler in (("high", high), ("low", low)):
        if sampler.loras:
            yield f"LoRAs on the {expert}-noise expert: {', '.join(reversed(sampler.loras))}"


def _size(graph: Workflow, first: Node) -> tuple[int | None, int | None, int | None]:
    for node in _before(graph, first, _LATENT):
        frames = "length" if "length" in node.inputs else "frames"
        if {"width", "height", frames} <= node.inputs.keys():
            width, height, count = (
                _integer(graph, node, name, 0) for name in ("width", "height", frames)
            )
            return width, height, count
    return None, None, None


def _text(graph: Workflow, node: Node, name: str) -> str | None:
    for before in _before(graph, node, (name, *_TEXT)):
        if "text" in before.inputs:
            try:
                return str(graph.value(before, "text"))
            except ValueError:  # another node writes it
                return None
    return None


def _integer(graph: Workflow, node: Node, name: str, default: int) -> int:
    return int(_number(graph, node, name, default))


def _number(graph: Workflow, node: Node, name: str, default: float) -> float:
    value = graph.value(node, name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(
            f"{name} of node {node.id} ({node.title}) is {value!r}, not a number; put one there"
        )
    return value
