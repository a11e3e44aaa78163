"""A workflow as the queue sees it: nodes by id, their inputs values or links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PRIMITIVES = (
    "PrimitiveInt",
    "PrimitiveFloat",
    "PrimitiveString",
    "PrimitiveStringMultiline",
    "PrimitiveBoolean",
)
"""ComfyUI's nodes that only hold a value, called ``value``."""


@dataclass(frozen=True, slots=True)
class Link:
    """Where an input comes from: a node and the number of its output."""

    node: str
    slot: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One node that runs.

    Attributes:
        id: as in the file.
        kind: its class in ComfyUI.
        title: as on the canvas, or its class.
        inputs: name -> value or :class:`Link`; widgets of nodes this library does not know are
            missing in UI files, which do not name them.
    """

    id: str
    kind: str
    title: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Workflow:
    """All nodes that run, by id."""

    nodes: Mapping[str, Node]

    def of(self, *kinds: str) -> list[Node]:
        """The nodes of these classes, in the order of the file."""
        return [node for node in self.nodes.values() if node.kind in kinds]

    def source(self, node: Node, name: str) -> tuple[Node, int] | None:
        """The node an input is linked to and the number of its output; None for a value or nothing."""
        link = node.inputs.get(name)
        if not isinstance(link, Link) or link.node not in self.nodes:
            return None
        return self.nodes[link.node], link.slot

    def value(self, node: Node, name: str, default: Any = None) -> Any:
        """The value of a widget, also over a link from a node that only holds a value.

        Raises:
            ValueError: the value is only known when the workflow runs.
        """
        given = node.inputs.get(name, default)
        if not isinstance(given, Link):
            return given
        source = self.nodes.get(given.node)
        if source is not None and source.kind in PRIMITIVES:
            return self.value(source, "value", default)
        told = "nowhere" if source is None else f"node {source.id} ({source.title})"
        raise ValueError(
            f"{name} of node {node.id} ({node.title}) comes from {told}, which is only known when the "
            "workflow runs; put the value into the widget"
        )

    def api(self) -> dict[str, dict[str, Any]]:
        """The graph in ComfyUI's API format, as ``/prompt`` takes it."""
        return {
            node.id: {
                "class_type": node.kind,
                "inputs": {name: _api_value(value) for name, value in node.inputs.items()},
                "_meta": {"title": node.title},
            }
            for node in self.nodes.values()
        }


def _api_value(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value
