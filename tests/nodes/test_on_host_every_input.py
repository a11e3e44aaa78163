"""Every input of every node, given what it cannot take: refused before anything runs, in one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from wanexperts.comfy_server import Host, Refused

from . import random_weights as files
from .faces import each_input, ours
from .graphs import HEIGHT, WIDTH, node

pytestmark = pytest.mark.comfy
GIVEN: dict[str, dict[str, Any]] = {
    "WanExpertsLoader": {"model_high_noise": files.HIGH, "model_low_noise": files.LOW},
    "WanExpertsTextEncoderLoader": {"text_encoder": files.TEXT_FILE},
    "WanExpertsVAELoader": {"vae": files.VAE_FILE},
    "WanExpertsTextEncode": {"positive": "a red circle"},
    "WanExpertsEmptyLatent": {"width": WIDTH, "height": HEIGHT},
    "WanExpertsLora": {"lora_high_noise": files.LORA},
    "WanExpertsRecipe": {"recipe": "python generate.py --task t2v-A14B"},
    "WanExpertsVerify": {"file": "run.latent"},
}
SOURCES = {
    "MODEL": "WanExpertsLoader",
    "CLIP": "WanExpertsTextEncoderLoader",
    "VAE": "WanExpertsVAELoader",
    "CONDITIONING": "WanExpertsTextEncode",
    "LATENT": "WanExpertsEmptyLatent",
    "GUIDER": "WanExpertsGuider",
    "SIGMAS": "WanExpertsSchedule",
    "SAMPLER": "WanExpertsSolver",
    "WAN_STAGES": "WanExpertsStage",
}
PLAIN = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
REFUSED_TEXTS = {"positive", "filename_prefix", "recipe", "file"}
"""Texts that may not be empty; ComfyUI makes a text of everything else, and true or false of any value."""
SENTENCE = re.compile(r"^[^\n;]{8,}; \S[^\n]+$")
"""Given and rule; then the way out."""


def chain(infos: dict[str, Any], kind: str) -> dict[str, Any]:
    """A graph that runs ``kind``, with all before it; nodes are called by their class."""
    graph: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for group, name, wanted, options in each_input(infos[kind]):
        choices = wanted if isinstance(wanted, list) else options.get("options")
        if choices or wanted in PLAIN:
            values[name] = options.get("default", (choices or [None])[0])
        elif group == "required":
            values[name] = (SOURCES[wanted], 0)
            graph |= chain(infos, SOURCES[wanted])
    return graph | {kind: node(kind, **(values | GIVEN.get(kind, {})))}


def bad_values(kind: Any, options: dict[str, Any]) -> Iterator[Any]:
    """What a widget or a socket of that type cannot take."""
    if isinstance(kind, list) or kind == "COMBO":
        yield from ("no such choice", None)
    elif kind in ("INT", "FLOAT"):
        yield from (options["min"] - 1, 2 * options["max"] + 1, "many", "nan", None)
    elif kind not in PLAIN:
        yield from (
            "a word",
            ["WanExpertsSolver", 0] if kind != "SAMPLER" else ["WanExpertsNoise", 0],
        )


def refusal(host: Host, graph: dict[str, Any], kind: str) -> str:
    """What is said of the node ``kind``, once."""
    with pytest.raises(Refused) as caught:
        host.post("/prompt", {"prompt": graph})
    told = caught.value.answer["node_errors"]
    assert list(told) == [kind]
    (error,) = told[kind]["errors"]
    assert told[kind]["class_type"] == kind
    sentence: str = error["details"]
    return sentence


def test_every_input_of_every_node(host: Host) -> None:
    infos = ours(host.get("/object_info"))
    counted = 0
    for kind, info in infos.items():
        graph = (
            chain(infos, kind) | chain(infos, "WanExpertsSolver") | chain(infos, "WanExpertsNoise")
        )
        if not info["output_node"]:
            graph["end"] = node("PreviewAny", source=(kind, 0))
        for group, name, wanted, options in each_input(info):
            bad = list(bad_values(wanted, options))
            bad += [""] if name in REFUSED_TEXTS else []
            for value in bad:
                wrong = json.loads(json.dumps(graph))
                wrong[kind]["inputs"][name] = value
                told = refusal(host, wrong, kind)
                assert SENTENCE.match(told), (name, value, told)
                counted += 1
            if group == "required":
                wrong = json.loads(json.dumps(graph))
                del wrong[kind]["inputs"][name]
                told = refusal(host, wrong, kind)
                assert told.startswith((f"{name} is not connected; ", f"{name} is missing; "))
                counted += 1
    assert counted > 300
