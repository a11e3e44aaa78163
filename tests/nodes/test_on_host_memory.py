"""Both experts on a small device: never together unless they fit, and back into their files, not into memory."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.transformer import WanTransformer

from . import random_weights as files
from .graphs import LOADER, base_graph, node

pytestmark = pytest.mark.comfy
LARGE = TransformerConfig(dim=512, ffn_dim=2048, num_heads=4, num_layers=4, text_dim=64)
"""34 MB in bfloat16, beside which a step over a few tokens is little."""
NAMES = ("large_high_noise.safetensors", "large_low_noise.safetensors")


@pytest.fixture(scope="module", autouse=True)
def experts(host) -> None:
    network = WanTransformer(LARGE, device=torch.device("meta"))
    shapes = {key: tensor.shape for key, tensor in network.state_dict().items()}
    for name, value in zip(NAMES, (0.01, 0.02), strict=True):
        state = {
            key: torch.full(shape, value, dtype=torch.bfloat16) for key, shape in shapes.items()
        }
        role = name.removeprefix("large_").removesuffix(".safetensors")
        path = host.base / "models" / files.DIFFUSION_MODELS / name
        save_file(state, path, metadata={"format": "pt", "wan_role": role})


def shares(host, room: float, pair: tuple[str, str], lora: str = "") -> list[float]:
    """What ``WanProbeSwitch`` tells; nothing may have come back from its device."""
    graph = {LOADER: base_graph()[LOADER]}
    graph[LOADER]["inputs"] |= dict(zip(("model_high_noise", "model_low_noise"), pair, strict=True))
    high = (LOADER, 0)
    if lora:
        high = ("lora", 0)
        graph["lora"] = node(
            "LoraLoaderModelOnly", model=(LOADER, 0), lora_name=lora, strength_model=1.0
        )
    graph["switch"] = node("WanProbeSwitch", high=high, low=(LOADER, 1), room=room)
    graph["told"] = node("PreviewAny", source=("switch", 2))
    for index in range(2):
        graph[f"storage {index}"] = node("WanProbeStorage", model=("switch", index))
        graph[f"stored {index}"] = node("PreviewAny", source=(f"storage {index}", 0))
    outputs = host.run(graph)
    stored = [line for i in range(2) for line in outputs[f"stored {i}"]["text"][0].splitlines()]
    assert stored
    assert all(line.endswith("mapped") for line in stored), stored
    return [float(word) for word in outputs["told"]["text"][0].split()]


@pytest.mark.parametrize("room", [1.0, 1.5, 2.5])
def test_experts_share_a_device_only_if_both_fit(host, room):
    """A part of an expert stays where it is; what makes room goes without a copy."""
    spare, *told = shares(host, room, NAMES)
    high, low = told[::2], told[1::2]
    for pair in zip(high, low, strict=True):
        assert sum(pair) <= 1.1 * room + spare + 0.01
    assert min(high[0], low[1], high[2]) > 0.99
    assert (high[1] > 0.9) == (room > 2)


def test_patched_weights_go_back_to_their_file_too(host):
    assert shares(host, 1.5, (files.HIGH, files.LOW), files.LORA)[1] > 0.9
