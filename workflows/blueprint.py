"""A sheet as one node: a subgraph blueprint, which ComfyUI offers among its nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .sheet import Node, Out, Sheet, unique, version


def blueprint(sheet: Sheet, title: str, shown: Mapping[str, tuple[Node, str]], result: Out) -> Any:
    """``sheet`` as one node: ``shown`` names its widgets and where they go, ``result`` its output."""
    flat = sheet.ui()
    inner = unique("subgraph", sheet.name)
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, link, strict=True)) for link in flat["links"]]
    inputs, values = [], []
    for slot, (name, (node, widget)) in enumerate(shown.items()):
        drawn = flat["nodes"][node.id - 1]
        kind = next(i.kind for i in sheet.kinds[node.kind].inputs if i.name == widget)
        number = len(links) + 1
        drawn["inputs"].append(
            {"name": widget, "type": kind, "widget": {"name": widget}, "link": number}
        )
        target = (node.id, len(drawn["inputs"]) - 1)
        links.append(dict(zip(keys, (number, -10, slot, *target, kind), strict=True)))
        inputs.append(
            {
                "id": unique(inner, name),
                "name": name,
                "type": kind,
                "linkIds": [number],
                "pos": [0, 20 * slot],
            }
        )
        values.append(sheet.widgets(node)[widget])
    number = len(links) + 1
    links.append(
        dict(zip(keys, (number, result.node, result.slot, -20, 0, result.kind), strict=True))
    )
    flat["nodes"][result.node - 1]["outputs"][result.slot]["links"].append(number)
    name = result.kind.lower()
    outer = {
        "id": 1, "type": inner, "pos": [0, 0], "size": [420, 460], "flags": {}, "order": 0, "mode": 0,
        "inputs": [
            {"name": i["name"], "type": i["type"], "widget": {"name": i["name"]}, "link": None}
            for i in inputs
        ],
        "outputs": [{"name": name, "type": result.kind, "links": []}],
        "properties": {
            "proxyWidgets": [["-1", i["name"]] for i in inputs],
            "cnr_id": "wanexperts", "ver": version(),
        },
        "widgets_values": values,
    }  # fmt: skip
    state = {
        "lastGroupId": 0,
        "lastNodeId": len(flat["nodes"]),
        "lastLinkId": number,
        "lastRerouteId": 0,
    }
    output = {
        "id": unique(inner, name),
        "name": name,
        "type": result.kind,
        "linkIds": [number],
        "pos": [0, 0],
    }
    right = max(node["pos"][0] + node["size"][0] for node in flat["nodes"]) + 100
    definition = {
        "id": inner, "version": 1, "state": state, "revision": 0, "config": {}, "name": title,
        "inputNode": {"id": -10, "bounding": [-220, 0, 120, 40 + 20 * len(inputs)]},
        "outputNode": {"id": -20, "bounding": [right, 0, 120, 60]},
        "inputs": inputs, "outputs": [output], "widgets": [], "nodes": flat["nodes"], "groups": [],
        "links": links, "extra": {},
    }  # fmt: skip
    return {
        "id": unique(inner, "file"), "revision": 0, "last_node_id": 1, "last_link_id": 0, "nodes": [outer],
        "links": [], "groups": [], "definitions": {"subgraphs": [definition]}, "config": {}, "extra": {},
        "version": 0.4,
    }  # fmt: skip
