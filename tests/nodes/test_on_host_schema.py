"""Node ids, inputs, order, defaults and outputs are the public API: frozen in ``schema.json``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.comfy
FROZEN = Path(__file__).with_name("schema.json")
SHOWN = ("default", "min", "max", "step", "multiline", "control_after_generate")


def public(info):
    """One node's public face, in the same words for every ComfyUI version."""
    inputs = []
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, options = (*info["input"][group][name], {})[:2]
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


def ours(host):
    everything = host.get("/object_info")
    return {name: info for name, info in everything.items() if name.startswith("WanExperts")}


def test_public_face_is_frozen(host):
    live = {name: public(info) for name, info in sorted(ours(host).items())}
    assert live == json.loads(FROZEN.read_text(encoding="utf-8"))


def test_every_input_and_output_has_a_tooltip(host):
    for name, info in ours(host).items():
        assert info["description"], name
        assert all(info["output_tooltips"]), name
        for group in ("required", "optional"):
            for key, (_, options) in info["input"].get(group, {}).items():
                assert options.get("tooltip"), (name, key)


def test_the_pack_loads_in_silence(host):
    log = host.log.read_text().partition("got prompt")[0]
    names = [line for line in log.splitlines() if "ComfyUI-WanExperts" in line]
    assert len(names) == 1  # the line with its import time
    assert "IMPORT FAILED" not in names[0]
