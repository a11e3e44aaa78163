"""What a server's ``/object_info`` says of nodes: the names of widgets, and which values they take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..files import shown
from ..workflow import NOT_NAMED, WIDGETS, Node, Workflow

NUMBERS = ("INT", "FLOAT")
KINDS = (*NUMBERS, "STRING", "BOOLEAN", "COMBO")
"""Types of inputs that are widgets."""
SEEDS = ("seed", "noise_seed")
"""Whole numbers that get a second widget, what happens to them after a run, by their name alone."""
UPLOADS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")
"""Options that give a list a second widget, a button."""
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Widget:
    """One widget: its type, limits or choices, default, and how many values in a UI file are its own."""

    name: str
    kind: str
    choices: tuple[Any, ...] = ()
    low: float = -math.inf
    high: float = math.inf
    default: Any = None
    required: bool = True
    places: int = 1


class Catalog:
    """The nodes of a server."""

    def __init__(self, info: Mapping[str, Any]) -> None:
        """``info`` is the JSON of ``/object_info``."""
        self._info = info

    def __contains__(self, kind: str) -> bool:
        """Whether the server has nodes of this class."""
        return kind in self._info

    def widgets(self, kind: str) -> dict[str, Widget]:
        """The widgets of a class in the order of the canvas; empty for an unknown class."""
        told = self._info.get(kind, {})
        groups, orders = told.get("input") or {}, told.get("input_order") or {}
        found = {}
        for group in ("required", "optional"):
            inputs = groups.get(group) or {}
            for name in orders.get(group) or inputs:
                if widget := _widget(str(name), inputs[name], required=group == "required"):
                    found[widget.name] = widget
        return found

    def orders(self) -> dict[str, tuple[str, ...]]:
        """Class -> names of the values in UI files: the server's, and ours where it is silent."""
        found = dict(WIDGETS)
        for kind in self._info:
            names: list[str] = []
            for widget in self.widgets(kind).values():
                names += [widget.name, *[NOT_NAMED] * (widget.places - 1)]
            found[kind] = tuple(names)
        return found

    def missing(self, workflow: Workflow) -> list[str]:
        """Classes in ``workflow`` that the server does not have."""
        kinds = dict.fromkeys(node.kind for node in workflow.nodes.values())
        return [kind for kind in kinds if kind not in self]

    def completed(self, node: Node) -> Node:
        """``node`` with the title the canvas shows, and with defaults for required widgets that came
        after the file was saved.
        """
        widgets = self.widgets(node.kind).values()
        added = {
            widget.name: widget.default
            for widget in widgets
            if widget.required and widget.default is not None
        }
        shown_as = self._info.get(node.kind, {}).get("display_name") or node.kind
        return Node(
            id=node.id,
            kind=node.kind,
            title=str(shown_as) if node.title == node.kind else node.title,
            inputs={**{k: v for k, v in added.items() if k not in node.inputs}, **node.inputs},
        )

    def value(self, node: Node, name: str, text: str) -> Any:
        """``text`` as the value of a widget.

        Raises:
            ValueError: it is none, or outside the widget's limits.
        """
        widget = self.widgets(node.kind).get(name) or _like(name, node.inputs.get(name))
        value = _parsed(widget, text)
        where = f"{name} of node {node.id} ({shown(node.title)})"
        if value is None:
            raise ValueError(f"{where} is {_wanted(widget)}, not {shown(text)!r}; give one")
        if widget.kind in NUMBERS and not widget.low <= value <= widget.high:
            raise ValueError(
                f"{where} is {shown(text)}, its limits are {widget.low:g} to {widget.high:g}; use a "
                "number within them"
            )
        return value


def _widget(name: str, told: Any, *, required: bool) -> Widget | None:
    """None for a socket."""
    kind, options = (*told, {})[:2]
    if isinstance(kind, list):
        kind, options = "COMBO", {"options": kind, **options}
    if kind not in KINDS or options.get("forceInput"):
        return None
    after = options.get("control_after_generate")
    if after is None:
        after = kind == "INT" and name in SEEDS
    more = bool(after) or any(options.get(upload) for upload in UPLOADS)
    choices = options.get("options") or ()
    low, high = options.get("min"), options.get("max")
    return Widget(
        name=name,
        kind=kind,
        choices=tuple(choices) if isinstance(choices, list) else (),
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        default=options.get("default", choices[0] if choices else None),
        required=required,
        places=2 if more else 1,
    )


def _like(name: str, value: Any) -> Widget:
    """A widget of the type of a value, for inputs nobody describes; a UI file spells 4.0 as 4."""
    kinds = ((bool, "BOOLEAN"), (int, "NUMBER"), (float, "NUMBER"))
    kind = next((kind for known, kind in kinds if isinstance(value, known)), "STRING")
    return Widget(name=name, kind=kind)


def _parsed(widget: Widget, text: str) -> Any:
    """None for what is no value of the widget."""
    if widget.kind == "STRING":
        return text
    text = text.strip()
    if widget.kind == "COMBO":
        same = (choice for choice in widget.choices if str(choice) == text)
        return next(same, None) if widget.choices else text
    if widget.kind == "BOOLEAN":
        return True if text.lower() in YES else False if text.lower() in NO else None
    whole = widget.kind == "INT" or (widget.kind == "NUMBER" and text.isdecimal())
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _wanted(widget: Widget) -> str:
    if widget.kind == "COMBO":
        return f"one of {shown(', '.join(map(str, widget.choices)))}"
    return {"INT": "a whole number", "BOOLEAN": "true or false"}.get(widget.kind, "a number")
