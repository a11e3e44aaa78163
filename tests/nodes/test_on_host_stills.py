"""Text to image: the nodes of a clip, asked for one frame."""

from __future__ import annotations

import json

import av
import pytest
import torch
from wanexperts.tests.wan.clips import png_tags
from wanexperts.wan.checkpoint import load_vae
from wanexperts.wan.video import read_png, to_frames

from . import random_weights as files
from .graphs import (
    EMPTY,
    HEIGHT,
    SAMPLER,
    SAVE,
    VAE,
    VIDEO,
    WIDTH,
    node,
    saved_latents,
    video_graph,
)

pytestmark = pytest.mark.comfy
DECODE, IMAGE = "20", "21"
WORKFLOW = {"version": 0.4, "nodes": [], "note": "红色"}


def test_one_frame_from_prompt_to_png(host, random_models):
    graph = video_graph(noise_seed=77)
    graph[EMPTY]["inputs"]["frames"] = 1
    graph[DECODE] = node("WanExpertsDecode", vae=(VAE, 0), samples=(SAMPLER, 0))
    graph[IMAGE] = node("SaveImage", images=(DECODE, 0), filename_prefix="stills/one")
    outputs = {}
    for event in host.events(graph, {"extra_pnginfo": {"workflow": WORKFLOW}}):
        assert event["type"] not in ("execution_error", "execution_interrupted"), event
        if event["type"] == "executed":
            outputs[event["data"]["node"]] = event["data"]["output"]
    latents = saved_latents(host, outputs, SAVE)
    assert latents.shape == (1, 16, 1, HEIGHT // 8, WIDTH // 8)
    (saved,) = outputs[IMAGE]["images"]
    image = read_png(host.path(saved))
    vae = load_vae(random_models / files.VAE / files.VAE_FILE, dtype=torch.float32)
    with torch.no_grad():
        wanted = to_frames(vae.decode(latents.float())[0], 8)[0]
    assert (image.int() - wanted.int()).abs().max() <= 1  # measured 0 of 255
    assert json.loads(png_tags(host.path(saved))["workflow"]) == WORKFLOW
    with av.open(str(host.path(outputs[VIDEO]["images"][0]))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1
