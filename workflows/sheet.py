"""A template while it is described: nodes, links and notes, and both formats they become."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
BYPASSED = 4
OLDEST = "0.3.64"
"""Of ComfyUI: what a template asks of core nodes."""
CORE: dict[str, dict[str, Any]] = {
    "UNETLoader": {
        "display_name": "Load Diffusion Model",
        "inputs": {"unet_name": "COMBO", "weight_dtype": "COMBO"},
        "outputs": {"MODEL": "MODEL"},
    },
    "CLIPLoader": {
        "display_name": "Load CLIP",
        "inputs": {"clip_name": "COMBO", "type": "COMBO"},
        "outputs": {"CLIP": "CLIP"},
    },
    "VAELoader": {
        "display_name": "Load VAE",
        "inputs": {"vae_name": "COMBO"},
        "outputs": {"VAE": "VAE"},
    },
    "CLIPTextEncode": {
        "display_name": "CLIP Text Encode (Prompt)",
        "inputs": {"text": "STRING", "clip": "CLIP"},
        "outputs": {"CONDITIONING": "CONDITIONING"},
    },
    "EmptyHunyuanLatentVideo": {
        "display_name": "EmptyHunyuanLatentVideo",
        "inputs": {"width": "INT", "height": "INT", "length": "INT", "batch_size": "INT"},
        "outputs": {"LATENT": "LATENT"},
    },
    "RandomNoise": {
        "display_name": "RandomNoise",
        "inputs": {"noise_seed": "INT"},
        "outputs": {"NOISE": "NOISE"},
    },
    "SamplerCustomAdvanced": {
        "display_name": "SamplerCustomAdvanced",
        "inputs": {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS",
                   "latent_image": "LATENT"},
        "outputs": {"output": "LATENT", "denoised_output": "LATENT"},
    },
    "VAEDecode": {
        "display_name": "VAE Decode",
        "inputs": {"samples": "LATENT", "vae": "VAE"},
        "outputs": {"IMAGE": "IMAGE"},
    },
    "CreateVideo": {
        "display_name": "Create Video",
        "inputs": {"images": "IMAGE", "fps": "FLOAT"},
        "outputs": {"VIDEO": "VIDEO"},
    },
    "SaveVideo": {
        "display_name": "Save Video",
        "inputs": {"video": "VIDEO", "filename_prefix": "STRING", "format": "COMBO", "codec": "COMBO"},
        "outputs": {},
    },
}  # fmt: skip
"""ComfyUI's own nodes that templates use: what they need, in the order of their widgets."""
SEEDED = {"RandomNoise": "noise_seed", "WanExpertsSampler": "noise_seed"}
"""Widgets that are followed by what happens to them after a run."""


class Out(NamedTuple):
    """An output of a node: its id, the number of the output and its type."""

    node: int
    slot: int
    kind: str


class Input(NamedTuple):
    """An input of a node class."""

    name: str
    kind: str
    default: Any = None
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A node class."""

    title: str
    inputs: tuple[Input, ...]
    outputs: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node on the canvas; ``values`` holds widgets and links (:class:`Out`) by input name."""

    id: int
    kind: str
    at: tuple[int, int]
    size: tuple[int, int]
    values: Mapping[str, Any]
    outputs: Mapping[str, str]
    title: str = ""
    models: tuple[Mapping[str, str], ...] = ()
    mode: int = 0

    def __getitem__(self, name: str) -> Out:
        """The output of that name."""
        return Out(self.id, list(self.outputs).index(name), self.outputs[name])


def read_kinds() -> dict[str, Kind]:
    """Our nodes from the frozen schema, and ComfyUI's."""
    frozen = json.loads((ROOT / "tests" / "nodes" / "schema.json").read_text(encoding="utf-8"))
    kinds = {
        name: Kind(
            title=told["display_name"],
            inputs=tuple(
                Input(i["name"], i["type"], i.get("default"), i.get("optional", False))
                for i in told["inputs"]
            ),
            outputs=dict(told["outputs"]),
        )
        for name, told in frozen.items()
    }
    for name, told in CORE.items():
        inputs = tuple(Input(*pair) for pair in told["inputs"].items())
        kinds[name] = Kind(title=told["display_name"], inputs=inputs, outputs=told["outputs"])
    return kinds


@dataclass
class Sheet:
    """A template while it is described."""

    name: str
    after_run: str = "randomize"
    """What happens to seeds after a run."""
    kinds: Mapping[str, Kind] = field(default_factory=read_kinds)
    nodes: list[Node] = field(default_factory=list)
    notes: list[tuple[str, tuple[int, int], tuple[int, int]]] = field(default_factory=list)

    def add(
        self,
        kind: str,
        at: tuple[int, int],
        size: tuple[int, int],
        *,
        title: str = "",
        models: tuple[Mapping[str, str], ...] = (),
        mode: int = 0,
        **values: Any,
    ) -> Node:
        """Put a node on the canvas; inputs that are not given keep their defaults."""
        known = {i.name for i in self.kinds[kind].inputs}
        if unknown := values.keys() - known:
            raise ValueError(f"{kind} has no {', '.join(sorted(unknown))}; it has {sorted(known)}")
        node = Node(
            id=len(self.nodes) + 1, kind=kind, at=at, size=size, values=values, title=title,
            outputs=self.kinds[kind].outputs, models=models, mode=mode,
        )  # fmt: skip
        self.nodes.append(node)
        return node

    def note(self, text: str, at: tuple[int, int], size: tuple[int, int]) -> None:
        """Words on the canvas, as Markdown."""
        self.notes.append((text, at, size))

    def widgets(self, node: Node) -> dict[str, Any]:
        """Widget values by name up to the last that is required or is not its default."""
        inputs = [i for i in self.kinds[node.kind].inputs if i.kind in WIDGETS]
        given = {i.name: node.values.get(i.name, i.default) for i in inputs}
        kept = [i.name for i in inputs if not i.optional or given[i.name] != i.default]
        last = max((list(given).index(name) for name in kept), default=-1)
        return dict(list(given.items())[: last + 1])

    def api(self) -> dict[str, Any]:
        """The graph as ``/prompt`` takes it."""
        graph = {}
        for node in self.nodes:
            if node.mode == BYPASSED:
                continue
            links = {name: v for name, v in node.values.items() if isinstance(v, Out)}
            inputs = self.widgets(node) | {name: self._behind(out) for name, out in links.items()}
            order = [i.name for i in self.kinds[node.kind].inputs if i.name in inputs]
            graph[str(node.id)] = {
                "class_type": node.kind,
                "inputs": {name: inputs[name] for name in order},
                "_meta": {"title": node.title or self.kinds[node.kind].title},
            }
        return graph

    def _behind(self, out: Out) -> list[Any]:
        """Where a link comes from when bypassed nodes are left out."""
        node = self.nodes[out.node - 1]
        if node.mode != BYPASSED:
            return [str(out.node), out.slot]
        through = [v for v in node.values.values() if isinstance(v, Out) and v.kind == out.kind]
        return self._behind(through[out.slot])

    def ui(self) -> dict[str, Any]:
        """The workflow as the canvas opens it."""
        links: list[list[Any]] = []
        nodes = [self._drawn(node, order, links) for order, node in enumerate(self.nodes)]
        for link, source, slot, *_ in links:
            nodes[source - 1]["outputs"][slot]["links"].append(link)
        for number, (text, at, size) in enumerate(self.notes, start=len(nodes) + 1):
            nodes.append({
                "id": number, "type": "MarkdownNote", "pos": list(at), "size": list(size), "flags": {},
                "order": number - 1, "mode": 0, "inputs": [], "outputs": [], "properties": {},
                "widgets_values": [text], "title": "English" if text.isascii() else "\u4e2d\u6587", "color": "#432", "bgcolor": "#653",
            })  # fmt: skip
        return {
            "id": unique(self.name),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": [],
            "config": {},
            "extra": {"ds": {"scale": 0.6, "offset": [140, 140]}},
            "version": 0.4,
        }

    def _drawn(self, node: Node, order: int, links: list[list[Any]]) -> dict[str, Any]:
        """A node of the UI format; its links are added to ``links``."""
        values: list[Any] = []
        for name, value in self.widgets(node).items():
            values.append(0 if isinstance(value, Out) else value)
            if SEEDED.get(node.kind) == name:
                values.append(self.after_run)
        inputs = []
        for told in self.kinds[node.kind].inputs:
            value = node.values.get(told.name)
            if isinstance(value, Out):
                links.append(
                    [len(links) + 1, value.node, value.slot, node.id, len(inputs), told.kind]
                )
            elif told.kind in WIDGETS or told.optional:
                continue
            slot: dict[str, Any] = {"name": told.name, "type": told.kind}
            if told.kind in WIDGETS:
                slot["widget"] = {"name": told.name}
            inputs.append({**slot, "link": len(links) if isinstance(value, Out) else None})
        ours = node.kind not in CORE
        drawn: dict[str, Any] = {
            "id": node.id, "type": node.kind, "pos": list(node.at), "size": list(node.size),
            "flags": {}, "order": order, "mode": node.mode, "inputs": inputs,
            "outputs": [
                {"name": name, "type": kind, "slot_index": slot, "links": []}
                for slot, (name, kind) in enumerate(node.outputs.items())
            ],
            "properties": {
                "Node name for S&R": node.kind,
                "cnr_id": "wanexperts" if ours else "comfy-core",
                "ver": version() if ours else OLDEST,
            },
            "widgets_values": values,
        }  # fmt: skip
        if node.models:
            drawn["properties"]["models"] = [dict(model) for model in node.models]
        return {**drawn, "title": node.title} if node.title else drawn


def version() -> str:
    """Of this pack."""
    found = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.M)
    assert found is not None
    return found[1]


def unique(*names: str) -> str:
    """An id that stays the same as long as the names do."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(("wanexperts", *names))))
