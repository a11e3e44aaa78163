"""Node ids, inputs, order, defaults and outputs are the public API: frozen in ``schema.json``.

``tests/nodes/freeze.py`` writes it anew, and the English words with it.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from wanexperts.comfy_server import PACK

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


def test_words_and_help_pages_are_served(host):
    words = host.get("/i18n")
    assert {"en", "zh"} <= set(words)
    for node in asked(host):
        assert words["zh"]["nodeDefs"][node]["display_name"]
    page = f"http://{host.url}/extensions/{PACK}/docs/WanExpertsSampler/zh.md"
    with urllib.request.urlopen(page, timeout=30) as answer:
        assert "html" not in answer.headers["Content-Type"]  # the frontend takes that for an error
        assert answer.read().decode().startswith("# Wan 双专家采样")
