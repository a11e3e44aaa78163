"""A sheet as one node: a subgraph blueprint, which ComfyUI offers among its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .sheet import Node, Out, Sheet, unique, version

LINK = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
INPUT, OUTPUT = -10, -20
"""Ids of the places where links enter and leave a subgraph."""


def blueprint(sheet: Sheet, title: str, shown: Mapping[str, tuple[Node, str]], result: Out) -> Any:
    """``sheet`` as one node: ``shown`` names its widgets and where they go, ``result`` its output."""
    flat, inner = sheet.ui(), unique("subgraph", sheet.name)
    links = [dict(zip(LINK, link, strict=True)) for link in flat["links"]]
    inputs = []
    for slot, (name, (node, widget)) in enumerate(shown.items()):
        drawn = flat["nodes"][node.id - 1]
        kind = next(i.kind for i in sheet.kinds[node.kind].inputs if i.name == widget)
        number, target = len(links) + 1, (node.id, len(drawn["inputs"]))
        drawn["inputs"].append(
            {"name": widget, "type": kind, "widget": {"name": widget}, "link": number}
        )
        links.append(dict(zip(LINK, (number, INPUT, slot, *target, kind), strict=True)))
        inputs.append(_slot(inner, name, kind, number, 20 * slot))
    number, name = len(links) + 1, result.kind.lower()
    leaving = (number, result.node, result.slot, OUTPUT, 0, result.kind)
    links.append(dict(zip(LINK, leaving, strict=True)))
    flat["nodes"][result.node - 1]["outputs"][result.slot]["links"].append(number)
    definition = _definition(title, inner, flat["nodes"], links)
    definition |= {"inputs": inputs, "outputs": [_slot(inner, name, result.kind, number, 0)]}
    outer = _outer(inner, inputs, {"name": name, "type": result.kind, "links": []})
    outer["widgets_values"] = [sheet.widgets(node)[widget] for node, widget in shown.values()]
    return {
        "id": unique(inner, "file"), "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [outer],
        "links": [], "groups": [], "definitions": {"subgraphs": [definition]}, "config": {}, "extra": {},
        "version": 0.4,
    }  # fmt: skip


def _slot(inner: str, name: str, kind: str, link: int, y: int) -> dict[str, Any]:
    """An input or an output of the subgraph."""
    return {
        "id": unique(inner, name), "name": name, "type": kind, "linkIds": [link], "pos": [0, y],
    }  # fmt: skip


def _outer(
    inner: str, inputs: Sequence[Mapping[str, Any]], output: Mapping[str, Any]
) -> dict[str, Any]:
    """The node that is seen."""
    return {
        "id": 1, "type": inner, "pos": [0, 0], "size": [420, 460], "flags": {}, "order": 0, "mode": 0,
        "inputs": [
            {"name": i["name"], "type": i["type"], "widget": {"name": i["name"]}, "link": None}
            for i in inputs
        ],
        "outputs": [output],
        "properties": {
            "proxyWidgets": [["-1", i["name"]] for i in inputs],
            "cnr_id": "wanexperts", "ver": version(),
        },
    }  # fmt: skip


def _definition(
    title: str, inner: str, nodes: Sequence[Mapping[str, Any]], links: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What is in it, but for its inputs and outputs."""
    right = max(node["pos"][0] + node["size"][0] for node in nodes) + 100
    entering = sum(link["origin_id"] == INPUT for link in links)
    state = {
        "lastGroupId": 0,
        "lastNodeId": len(nodes),
        "lastLinkId": len(links),
        "lastRerouteId": 0,
    }
    return {
        "id": inner, "version": 1, "state": state, "revision": 0, "config": {}, "name": title,
        "inputNode": {"id": INPUT, "bounding": [-220, 0, 120, 40 + 20 * entering]},
        "outputNode": {"id": OUTPUT, "bounding": [right, 0, 120, 60]},
        "inputs": [], "outputs": [], "widgets": [], "nodes": nodes, "groups": [],
        "links": links, "extra": {},
    }  # fmt: skip
