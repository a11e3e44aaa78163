"""What the loaders list and open: every layout in ComfyUI's model folders, and nothing outside them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from wanexperts import comfy_server

from . import random_weights as files
from .graphs import LOADER, PROMPT, TEXT, Graph, base_graph, changed, node, saved_latents

pytestmark = pytest.mark.comfy
REPOSITORY = "diffusers-repository"
FIRST, SECOND = f"{REPOSITORY}/transformer/", f"{REPOSITORY}/transformer_2/"
PICKLED_EXPERT = "pickled_low_noise.pth"
OFFICIAL_TEXT = "official/models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture(scope="module", autouse=True)
def models(host) -> Path:
    folder: Path = host.base / "models"
    experts, texts = folder / files.DIFFUSION_MODELS, folder / files.TEXT_ENCODERS
    for place, name in ((FIRST, files.HIGH), (SECOND, files.LOW)):
        files.write_shards(experts / place, load_file(experts / name))
    index = {"_class_name": "WanPipeline", "boundary_ratio": 0.85}
    (experts / REPOSITORY / "model_index.json").write_text(json.dumps(index))
    torch.save(load_file(experts / files.LOW), experts / PICKLED_EXPERT)
    text = load_file(texts / files.TEXT_FILE)
    spiece = text.pop("spiece_model")
    (texts / "official" / "google" / "umt5-xxl").mkdir(parents=True)
    tokenizer = texts / "official" / "google" / "umt5-xxl" / "spiece.model"
    tokenizer.write_bytes(bytes(spiece.tolist()))
    torch.save(text, texts / OFFICIAL_TEXT)
    (experts / "listed.gguf").write_bytes(b"GGUF")
    return folder


def options(host, node_id: str, name: str) -> list[str]:
    kind, *rest = host.get(f"/object_info/{node_id}")[node_id]["input"]["required"][name]
    return kind if isinstance(kind, list) else rest[0]["options"]


def test_every_layout_is_listed_once(host):
    listed = options(host, "WanExpertsLoader", "model_high_noise")
    assert {FIRST, SECOND, PICKLED_EXPERT, "listed.gguf", files.HIGH} <= set(listed)
    assert not [name for name in listed if "-of-" in name]
    assert len(listed) == len(set(listed))
    assert OFFICIAL_TEXT in options(host, "WanExpertsTextEncoderLoader", "text_encoder")
    assert "listed.gguf" not in options(host, "WanExpertsVAELoader", "vae")


def test_a_diffusers_repository_is_a_pair_with_its_boundary(host):
    graph: Graph = {
        LOADER: node("WanExpertsLoader", model_high_noise=FIRST, model_low_noise=SECOND),
        "20": node("PreviewAny", source=(LOADER, 2)),
    }
    report = host.run(graph)["20"]["text"][0]
    assert "boundary 0.85" in report
    assert "high noise by its folder" in report
    assert "low noise by its folder" in report
    graph[LOADER]["inputs"] |= {"model_high_noise": SECOND, "model_low_noise": FIRST}
    with pytest.raises(comfy_server.Refused, match="the experts are swapped"):
        host.run(graph)


def forward(host, low: str) -> Tensor:
    graph: Graph = {
        LOADER: node("WanExpertsLoader", model_high_noise=files.HIGH, model_low_noise=low),
        "forward": node("WanProbeForward", model=(LOADER, 1), share=-1.0),
        "save": node("SaveLatent", samples=("forward", 0), filename_prefix="latents/layout"),
    }
    return saved_latents(host, host.run(graph), "save")


@pytest.mark.parametrize("name", [SECOND, PICKLED_EXPERT])
def test_every_layout_gives_the_same_output(host, name):
    assert torch.equal(forward(host, name), forward(host, files.LOW))


def test_the_official_text_encoder_with_its_tokenizer_beside(host):
    results = []
    for name in (files.TEXT_FILE, OFFICIAL_TEXT):
        graph: Graph = {
            TEXT: node("WanExpertsTextEncoderLoader", text_encoder=name),
            "text": node("CLIPTextEncode", clip=(TEXT, 0), text=PROMPT),
            "as": node("WanProbeText", conditioning=("text", 0)),
            "save": node("SaveLatent", samples=("as", 0), filename_prefix="latents/text"),
        }
        results.append(saved_latents(host, host.run(graph), "save"))
    assert torch.equal(*results)


OUTSIDE = (
    f"../{files.DIFFUSION_MODELS}/{files.LOW}",
    f"{REPOSITORY}/../{files.LOW}",
    f"{REPOSITORY}/transformer_2",
    f"{REPOSITORY}/",
    "/etc/passwd",
    "",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_listed_names_are_opened(host, models, name):
    given = name or str(models / files.DIFFUSION_MODELS / files.LOW)
    with pytest.raises(comfy_server.Refused, match="is not in the diffusion_models folders"):
        host.run(changed(base_graph(), LOADER, model_low_noise=given))
