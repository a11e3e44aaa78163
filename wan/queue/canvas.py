"""The UI file of a prompt, so that what it makes brings back the graph it was made by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from .names import Place


def changed_canvas(
    data: Any, changes: Mapping[Place, Any], orders: Mapping[str, Sequence[str]]
) -> dict[str, Any] | None:
    """A UI file with other widget values; None if ``data`` is none, or does not hold a value to change.

    ``orders`` are the names of values by class. A canvas that would show other values than those that
    ran is worse than none.
    """
    if not (isinstance(data, Mapping) and isinstance(data.get("nodes"), list)):
        return None
    canvas = deepcopy(dict(data))
    nodes = {str(node["id"]): node for node in canvas["nodes"]}
    for place, value in changes.items():
        node = nodes[place.node]
        held, names = node.get("widgets_values"), orders.get(node["type"], ())
        if isinstance(held, dict):
            held[place.input] = value
        elif place.input in names and names.index(place.input) < len(held or ()):
            held[names.index(place.input)] = value
        else:
            return None
    return canvas
