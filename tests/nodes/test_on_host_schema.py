"""Node ids, inputs, order, defaults and outputs are the public API: frozen in ``schema.json``.

``tests/nodes/freeze.py`` writes it anew, and the English words with it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .faces import ours, public, texts

pytestmark = pytest.mark.comfy
FROZEN = Path(__file__).with_name("schema.json")
ENGLISH = Path(__file__).parents[2] / "locales" / "en" / "nodeDefs.json"


def asked(host):
    return ours(host.get("/object_info"))


def test_public_face_is_frozen(host):
    live = {name: public(info) for name, info in asked(host).items()}
    assert live == json.loads(FROZEN.read_text(encoding="utf-8"))


def test_english_words_are_those_of_the_nodes(host):
    live = {name: texts(info) for name, info in asked(host).items()}
    told = "run tests/nodes/freeze.py and write what changed into locales/zh/nodeDefs.json too"
    assert live == json.loads(ENGLISH.read_text(encoding="utf-8")), told


def test_every_input_and_output_has_a_tooltip(host):
    for name, info in asked(host).items():
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
