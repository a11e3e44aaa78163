"""Patches on parameters that ComfyUI's loading passes over act, however much of a MODEL is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from wanexperts.wan.checkpoint import load_transformer

from . import random_weights as files
from .graphs import LOADER, base_graph, node, saved_latents
from .test_on_host_run import relative

pytestmark = pytest.mark.comfy
MANAGED, WHOLE, HALF, NONE = -1.0, 1.0, 0.5, 0.0
SHARES = {"managed": MANAGED, "resident": WHOLE, "partial": HALF, "novram": NONE}


def library_forward(
    models: Path, change: Mapping[str, Tensor], name: str = files.FP32_HIGH
) -> Tensor:
    """What ``WanProbeForward`` computes, by the library, with ``change`` added to the weights."""
    expert = load_transformer(models / files.DIFFUSION_MODELS / name)
    for key, delta in change.items():
        expert.get_parameter(key).data += delta
    generator = torch.Generator().manual_seed(11)
    x = torch.randn(1, 16, 3, 6, 8, generator=generator)
    context = torch.randn(1, 7, expert.config.text_dim, generator=generator)
    with torch.no_grad():
        return expert(x, torch.tensor([500.0]), context)


def modulation_change(models: Path, strength: float) -> dict[str, Tensor]:
    lora = load_file(models / files.LORAS / files.MODULATION_LORA)
    return {
        key.removeprefix("diffusion_model.").replace(".diff_b", ".bias").removesuffix(".diff"): (
            strength * delta
        )
        for key, delta in lora.items()
    }


def forwards(host, *steps: tuple[float | None, float]) -> list[Tensor]:
    """Forwards in one prompt, each with a LoRA of some strength (None: without) and a share."""
    loader = base_graph()[LOADER]
    loader["inputs"]["model_high_noise"] = files.FP32_HIGH
    graph, after = {LOADER: loader}, {}
    for index, (strength, share) in enumerate(steps):
        model = (LOADER, 0)
        if strength is not None:
            graph[f"lora {index}"] = node(
                "LoraLoaderModelOnly",
                model=model,
                lora_name=files.MODULATION_LORA,
                strength_model=strength,
            )
            model = (f"lora {index}", 0)
        graph[f"forward {index}"] = node("WanProbeForward", model=model, share=share, **after)
        after = {"after": (f"forward {index}", 0)}
        graph[f"save {index}"] = node(
            "SaveLatent", samples=after["after"], filename_prefix=f"latents/forward{index}"
        )
    outputs = host.run(graph)
    return [saved_latents(host, outputs, f"save {index}") for index in range(len(steps))]


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_a_patched_modulation_changes_the_output_as_computed(host, random_models, share):
    (got,) = forwards(host, (0.7, share))
    wanted = library_forward(random_models, modulation_change(random_models, 0.7))
    assert relative(got, wanted) < 1e-5  # measured: 7.2e-7
    # Each of the two parameters matters on its own.
    for name in files.MODULATIONS:
        change = modulation_change(random_models, 0.7)
        del change[name]
        assert relative(library_forward(random_models, change), wanted) > 1e-2


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
def test_strength_and_removal_are_exact(host, share):
    """Clones with other patches share one model; each finds its own, whoever was loaded before."""
    steps = [None, 0.7, 0.3, 0.7, None]
    plain, strong, weak, again, bare = forwards(host, *((step, share) for step in steps))
    assert torch.equal(again, strong)
    assert torch.equal(bare, plain)
    assert relative(weak, strong) > 1e-2
    assert relative(plain, weak) > 1e-2
