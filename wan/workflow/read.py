"""From a file to a :class:`Workflow`.

A UI file says what the canvas shows: widget values without names, links through reroutes, primitives,
muted and bypassed nodes. The queue sees none of that, and neither does who asks this module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import shown
from ..files.paths import read_head
from .graph import Link, Node, Workflow
from .widgets import NOT_NAMED, WIDGETS

MUTED, BYPASSED = 2, 4
"""Modes of a node on the canvas that keep it from running."""
NOTES = ("Note", "MarkdownNote")
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
LIMIT = 64 << 20
"""Bytes of a workflow file; large ones carry pictures and stay below a tenth of that."""

Json = Mapping[str, Any]


def read_workflow(path: str | Path) -> Workflow:
    """The workflow in a JSON file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no workflow, or one that only ComfyUI can flatten; one sentence says why.
    """
    data = read_canvas(path)
    try:
        return parse_workflow(data)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}") from error


def read_canvas(path: str | Path) -> Any:
    """What is in a JSON file of ComfyUI, for :func:`parse_workflow`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no JSON.
    """
    path = Path(path)
    read_head(path)  # says in one sentence what is wrong with a path that holds no file
    if path.stat().st_size > LIMIT:
        raise ValueError(f"{shown(path)} is too large to be a workflow; choose the JSON file")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{shown(path)} is not JSON; save the workflow in ComfyUI and give that file"
        ) from error


def parse_workflow(data: Any, widgets: Mapping[str, Sequence[str]] = WIDGETS) -> Workflow:
    """The workflow in decoded JSON, of either format.

    ``widgets`` names the values of UI files by class, see :data:`WIDGETS`.

    Raises:
        ValueError: see :func:`read_workflow`.
    """
    if isinstance(data, Mapping) and isinstance(data.get("prompt"), Mapping):
        data = data["prompt"]
    try:
        if isinstance(data, Mapping) and isinstance(data.get("nodes"), list):
            return _Canvas(data, widgets).workflow()
        if isinstance(data, Mapping) and data and all(_is_api_node(n) for n in data.values()):
            return Workflow({str(key): _api_node(str(key), node) for key, node in data.items()})
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(
            "this workflow is damaged; open it in ComfyUI and save it again"
        ) from error
    raise ValueError("this JSON holds no workflow of ComfyUI; save one there (UI or API format)")


def _is_api_node(node: Any) -> bool:
    return isinstance(node, Mapping) and "class_type" in node and "inputs" in node


def _api_node(key: str, node: Json) -> Node:
    kind = str(node["class_type"])
    title = str(node.get("_meta", {}).get("title") or kind)
    inputs = {str(name): _from_api(value) for name, value in node["inputs"].items()}
    return Node(id=key, kind=kind, title=title, inputs=inputs)


def _from_api(value: Any) -> Any:
    if isinstance(value, list) and len(value) == 2 and type(value[1]) is int:
        return Link(str(value[0]), value[1])
    if isinstance(value, Mapping) and set(value) == {"__value__"}:
        return value["__value__"]
    return value


class _Canvas:
    """A UI file while it is flattened."""

    def __init__(self, data: Json, widgets: Mapping[str, Sequence[str]]) -> None:
        self._widgets = widgets
        self._nodes: dict[str, Json] = {str(node["id"]): node for node in data["nodes"]}
        self._links = dict(_read_link(link) for link in data.get("links", []))
        definitions = data.get("definitions") or {}
        self._subgraphs = {
            str(graph["id"]): str(graph.get("name") or "")
            for graph in definitions.get("subgraphs", [])
        }

    def workflow(self) -> Workflow:
        """The nodes that run."""
        found = {}
        for key, node in self._nodes.items():
            kind = str(node["type"])
            if node.get("mode", 0) in (MUTED, BYPASSED) or kind in (*NOTES, REROUTE, PRIMITIVE):
                continue
            if kind in self._subgraphs:
                raise ValueError(
                    f"the workflow holds a subgraph ({shown(self._subgraphs[kind])}); unpack it in "
                    "ComfyUI, or export the workflow in API format"
                )
            title = str(node.get("title") or kind)
            found[key] = Node(id=key, kind=kind, title=title, inputs=self._inputs(node))
        return Workflow(found)

    def _inputs(self, node: Json) -> dict[str, Any]:
        """Widgets by name, then links, which win."""
        inputs = _named(node, self._widgets)
        for entry in node.get("inputs") or []:
            if (value := self._follow(entry.get("link"))) is not None:
                inputs[str(entry["name"])] = value
        return inputs

    def _follow(self, link: Any) -> Any:
        """Where a link really comes from: a :class:`Link`, a primitive's value, or None for nothing."""
        seen = set()
        while link is not None and link in self._links and link not in seen:
            seen.add(link)
            key, slot = self._links[link]
            node = self._nodes.get(key)
            if node is None or node.get("mode", 0) == MUTED:
                return None
            if node["type"] == PRIMITIVE:
                return (node.get("widgets_values") or [None])[0]
            if node["type"] != REROUTE and node.get("mode", 0) != BYPASSED:
                return Link(key, slot)
            link = _through(node, slot)
        return None


def _read_link(link: Any) -> tuple[Any, tuple[str, int]]:
    """``(id, (node, slot))`` of a link: a row of six in format 0.4, an object in format 1."""
    if isinstance(link, Mapping):
        return link["id"], (str(link["origin_id"]), int(link["origin_slot"]))
    return link[0], (str(link[1]), int(link[2]))


def _through(node: Json, slot: int) -> Any:
    """The link that goes on behind a reroute or a bypassed node: of the output's own type."""
    entries = node.get("inputs") or []
    if node["type"] == REROUTE:
        return entries[0].get("link") if entries else None
    wanted = node["outputs"][slot].get("type")
    # As the canvas does: the input in the place of the output first, then the first that fits.
    ordered = [*entries[slot : slot + 1], *entries]
    return next((entry.get("link") for entry in ordered if entry.get("type") == wanted), None)


def _named(node: Json, widgets: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The widget values of a node by name, as far as its class is known."""
    values = node.get("widgets_values") or []
    if isinstance(values, Mapping):
        return dict(values)
    names = widgets.get(str(node["type"]), ())
    return {name: value for name, value in zip(names, values, strict=False) if name != NOT_NAMED}
