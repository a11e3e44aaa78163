"""Compile Wan Experts: one set of graphs for everything, the numbers of the plain MODELs."""

from __future__ import annotations

import pytest
from wanexperts import comfy_server

from . import random_weights as files
from .graphs import ENCODE, LOADER, TEXT, base_graph, node

pytestmark = pytest.mark.comfy


def compiling(**models: tuple[str, int]) -> dict[str, object]:
    graph = base_graph()
    graph = {key: graph[key] for key in (LOADER, TEXT, ENCODE)}
    experts = {"model_high_noise": (LOADER, 0), "model_low_noise": (LOADER, 1)}
    graph["compile"] = node("WanExpertsCompile", **experts | models)
    return graph


def test_both_experts_loras_and_streamed_weights_share_the_graphs(host):
    """ComfyUI's own node makes 18 graphs of the first MODEL, 25 with the second, 39 in the end."""
    graph = compiling()
    graph["lora"] = node(
        "LoraLoaderModelOnly", model=(LOADER, 0), lora_name=files.LORA, strength_model=0.7
    )
    graph["runs"] = node(
        "WanProbeCompiled", high=(LOADER, 0), low=(LOADER, 1), lora=("lora", 0),
        node=("compile", 0), positive=(ENCODE, 0), negative=(ENCODE, 1), kind="blocks",
    )  # fmt: skip
    graph["told"] = node("PreviewAny", source=("runs", 0))
    told = host.run(graph)["told"]["text"][0].split()
    high, low, lora, streamed_lora, streamed = map(int, told[1:])
    assert float(told[0]) < 1e-6  # measured: 0
    assert 3 <= high == low == lora <= 5
    assert streamed == streamed_lora <= lora + 2  # norms cast where weights stay behind


def test_a_model_of_another_loader_is_refused(host):
    graph = compiling(model_low_noise=("core", 0))
    graph["core"] = node("UNETLoader", unet_name=files.CORE_LOW, weight_dtype="default")
    graph["told"] = node("PreviewAny", source=("compile", 0))
    with pytest.raises(comfy_server.HostError, match="model_low_noise is a WanModel of another"):
        host.run(graph)
