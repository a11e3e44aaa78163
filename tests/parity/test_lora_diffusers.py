"""LoRAs against diffusers: its key conversion, then the plain merge."""

from __future__ import annotations

import pytest
import torch
from wanexperts.tests.helpers import relative
from wanexperts.tests.wan.lora_writers import (
    WRITERS,
    expert,
    factors,
    save,
    shapes,
    weights,
    write_low_rank,
)
from wanexperts.wan.keys.transformer import diffusers_key
from wanexperts.wan.lora import apply_loras, read_lora, rename, resolve

diffusers = pytest.importorskip("diffusers")


def ours(tensors, path, role="any"):
    model = expert()
    section = read_lora(save(tensors, path / "lora.safetensors")).sections[role]
    resolved = resolve(section, shapes())
    assert not resolved.left
    apply_loras(model, [(resolved, 1.0)])
    return model


def in_blocks(tensors):
    """What diffusers' converters read: layers of blocks, with alphas."""
    return {key: tensor for key, tensor in tensors.items() if "blocks" in key}


def converted(tensors):
    mixin = diffusers.loaders.WanLoraLoaderMixin
    return mixin.lora_state_dict({key: tensor.clone() for key, tensor in tensors.items()})


def check_merge(state, model, record_property):
    """Their factors, merged by the plain formula into the stored weights, are our weights."""
    got, stored = weights(model), dict(expert().named_parameters())
    differences = []
    for name, weight in stored.items():
        module, _, leaf = f"transformer.{diffusers_key(name)}".rpartition(".")
        wanted = weight.double()
        if leaf == "weight" and f"{module}.lora_A.weight" in state:
            up, down = state.pop(f"{module}.lora_B.weight"), state.pop(f"{module}.lora_A.weight")
            wanted = wanted + up.double() @ down.double()
        if leaf == "bias" and f"{module}.lora_B.bias" in state:
            wanted = wanted + state.pop(f"{module}.lora_B.bias").double()
        differences.append(relative(got[name].double(), wanted))
    assert not state
    record_property("lora_weights_vs_diffusers_conversion", max(differences))
    assert max(differences) < 1e-6


@pytest.mark.parametrize("dialect", ["comfyui", "comfyui A B", "comfyui no alpha", "kohya"])
def test_diffusers_converts_the_same_keys_to_the_same_weights(dialect, tmp_path, record_property):
    tensors = in_blocks(write_low_rank(WRITERS[dialect], factors()))
    state = converted(tensors)
    assert len(state) == 40
    check_merge(state, ours(tensors, tmp_path), record_property)


def test_diffusers_agrees_on_top_layers_and_biases(tmp_path, record_property):
    tensors = write_low_rank(WRITERS["comfyui no alpha"], factors())
    tensors = {key: t for key, t in tensors.items() if ".patch_embedding." not in key}
    for module in ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.0", "head.head",
                   "time_projection.1", "text_embedding.0", "time_embedding.2"):  # fmt: skip
        shape = shapes()[f"{module}.bias"]
        tensors[f"diffusion_model.{module}.diff_b"] = torch.randn(shape) / 4
    check_merge(converted(tensors), ours(tensors, tmp_path), record_property)


@pytest.mark.parametrize("target", ["comfyui", "kohya", "diffusers"])
def test_what_we_write_diffusers_reads(target, tmp_path, record_property):
    tensors = in_blocks(write_low_rank(WRITERS["peft diffusers"], factors()))
    path = save(tensors, tmp_path / "lora.safetensors")
    written = rename(read_lora(path).sections["any"], target)
    assert not written.left
    check_merge(converted(written.tensors), ours(tensors, tmp_path), record_property)
