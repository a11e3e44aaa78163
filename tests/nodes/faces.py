"""What people see of a node: its frozen public face, and its words as the frontend looks them up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PREFIX = "WanExperts"
SHOWN = ("default", "min", "max", "step", "multiline", "control_after_generate")
SEED_CONTROL = "control_after_generate"
"""The widget that the frontend itself puts below a seed."""


def ours(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes of this pack."""
    return {name: object_info[name] for name in sorted(object_info) if name.startswith(PREFIX)}


def each_input(info: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """Group, name, type and options of every input in order."""
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, options = (*info["input"][group][name], {})[:2]
            yield group, name, kind, options


def public(info: Mapping[str, Any]) -> dict[str, Any]:
    """One node's public face, in the same words for every ComfyUI version."""
    inputs = []
    for group, name, kind, options in each_input(info):
        choices = kind if isinstance(kind, list) else options.get("options")
        entry = {"name": name, "type": "COMBO" if choices is not None else kind}
        if group == "optional":
            entry["optional"] = True
        if choices and not any(str(c).endswith("safetensors") for c in choices):
            entry["choices"] = choices
        entry |= {key: options[key] for key in SHOWN if options.get(key) is not None}
        inputs.append(entry)
    outputs = [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "inputs": inputs,
        "outputs": outputs,
        "output_node": info["output_node"],
    }


def texts(info: Mapping[str, Any]) -> dict[str, Any]:
    """One node's words, in the form of ``nodeDefs.json``; outputs go by number."""
    inputs = {}
    for _, name, _, options in each_input(info):
        inputs[name] = {"name": name, "tooltip": options.get("tooltip", "")}
        if options.get(SEED_CONTROL):
            inputs[SEED_CONTROL] = {"name": SEED_CONTROL.replace("_", " ")}
    named = zip(info["output_name"], info["output_tooltips"], strict=True)
    return {
        "display_name": info["display_name"],
        "description": info["description"],
        "inputs": inputs,
        "outputs": {
            str(number): {"name": name, "tooltip": tooltip or ""}
            for number, (name, tooltip) in enumerate(named)
        },
    }
