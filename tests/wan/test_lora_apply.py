"""LoRAs on a network: every kind of parameter counts, removal is exact, stacking adds up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from wanexperts.tests.helpers import relative
from wanexperts.tests.wan.lora_writers import (
    CONFIG,
    WRITERS,
    expert,
    factors,
    largest,
    merged,
    save,
    shapes,
    weights,
    write_full,
    write_low_rank,
)
from wanexperts.wan.lora import apply_loras, read_lora, resolve
from wanexperts.wan.quant import Quant, replace_layers
from wanexperts.wan.transformer import WanTransformer


def inputs(dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)
    context = torch.randn(1, 7, CONFIG.text_dim, generator=generator)
    return x.to(dtype), torch.tensor([700.0]), context


def load(tensors, path, name="lora"):
    (section,) = read_lora(save(tensors, path / f"{name}.safetensors")).sections.values()
    return resolve(section, shapes())


@pytest.fixture
def low_rank(tmp_path):
    return load(write_low_rank(WRITERS["comfyui"], factors()), tmp_path, "low_rank")


@pytest.fixture
def full(tmp_path):
    tensors = write_full(WRITERS["comfyui"], torch.Generator().manual_seed(5))
    return load(tensors, tmp_path, "full")


@pytest.mark.parametrize(
    "parameter",
    ["patch_embedding.weight", "patch_embedding.bias", "time_embedding.0.weight", "time_projection.1.bias",
     "text_embedding.2.weight", "blocks.0.modulation", "blocks.1.self_attn.q.weight", "blocks.1.self_attn.v.bias",
     "blocks.0.self_attn.norm_k.weight", "blocks.1.norm3.weight", "blocks.1.norm3.bias",
     "blocks.0.cross_attn.k.weight", "blocks.1.ffn.0.weight", "blocks.1.ffn.2.bias",
     "head.head.weight", "head.head.bias", "head.modulation"],
)  # fmt: skip
def test_a_change_of_any_parameter_acts_as_a_merge_does(parameter, tmp_path, record_property):
    shape = shapes()[parameter]
    diff = torch.randn(shape, generator=torch.Generator().manual_seed(2)) / 4
    module, _, leaf = parameter.rpartition(".")
    key = {"weight": f"{module}.diff", "bias": f"{module}.diff_b"}.get(leaf, f"{parameter}.diff")
    resolved = load({f"diffusion_model.{key}": diff}, tmp_path)
    model, other = expert(), expert()
    plain = model(*inputs())
    apply_loras(model, [(resolved, 0.8)])
    other.get_parameter(parameter).data.add_(0.8 * diff)
    changed = model(*inputs())
    assert relative(changed, plain) > 1e-3
    difference = relative(changed, other(*inputs()))
    record_property("lora_patched_vs_merged_output", difference)
    assert difference < 1e-5


def test_removal_and_strength_zero_are_bit_exact(low_rank, full):
    model = expert()
    stored = {name: p.clone() for name, p in model.named_parameters()}
    plain = model(*inputs())
    apply_loras(model, [(low_rank, 1.0), (full, 1.0)])
    assert not torch.equal(model(*inputs()), plain)
    assert all(torch.equal(p, stored[name]) for name, p in model.named_parameters())
    apply_loras(model, [(low_rank, 0.0), (full, 0.0)])
    assert torch.equal(model(*inputs()), plain)
    apply_loras(model, [(low_rank, 1.0)])
    apply_loras(model, ())
    assert torch.equal(model(*inputs()), plain)
    assert all(torch.equal(got, stored[name]) for name, got in weights(model).items())


def test_a_second_call_replaces_the_first(low_rank):
    model, other = expert(), expert()
    apply_loras(model, [(low_rank, 3.0)])
    apply_loras(model, [(low_rank, 0.5)])
    apply_loras(other, [(low_rank, 0.5)])
    assert torch.equal(model(*inputs()), other(*inputs()))


def test_stacked_loras_add_up_in_any_order(low_rank, full, tmp_path, record_property):
    second = load(write_low_rank(WRITERS["kohya"], factors(seed=8)), tmp_path, "second")
    model = expert()
    apply_loras(model, [(low_rank, 1.0), (second, -0.5), (full, 0.25)])
    one = weights(model)
    apply_loras(model, [(full, 0.25), (second, -0.5), (low_rank, 1.0)])
    difference = largest(weights(model), one)
    record_property("lora_order", difference)
    assert difference < 5e-7
    base = merged(expert(), factors())
    both = merged(expert(), factors(seed=8), -0.5)
    plain = {name: p.double() for name, p in expert().named_parameters()}
    apply_loras(model, [(low_rank, 1.0), (second, -0.5)])
    assert largest(weights(model), {k: base[k] + both[k] - plain[k] for k in plain}) < 1e-6


def test_the_same_lora_twice_counts_twice(low_rank):
    model, other = expert(), expert()
    apply_loras(model, [(low_rank, 0.5), (low_rank, 0.5)])
    apply_loras(other, [(low_rank, 1.0)])
    assert largest(weights(model), weights(other)) < 5e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_weights_are_changed_in_float32_and_rounded_once(dtype, low_rank):
    model = expert(dtype=dtype)
    apply_loras(model, [(low_rank, 1.0)])
    exact = merged(expert(dtype=dtype), factors())
    layer = model.blocks[0].self_attn.q
    x = torch.randn(3, 128, dtype=dtype)
    rounded = exact["blocks.0.self_attn.q.weight"].to(dtype)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, rounded, layer.bias))


def test_weights_mapped_from_disk(low_rank, tmp_path):
    path = tmp_path / "expert.safetensors"
    save_file(expert().state_dict(), path)
    bytes_before = path.read_bytes()
    model = WanTransformer(CONFIG, device=torch.device("meta"))
    model.load_state_dict(load_file(path), assign=True)
    model.eval().requires_grad_(False)
    apply_loras(model, [(low_rank, 1.0)])
    other = expert()
    apply_loras(other, [(low_rank, 1.0)])
    assert torch.equal(model(*inputs()), other(*inputs()))
    assert path.read_bytes() == bytes_before


def test_a_lora_resolved_on_another_network_changes_nothing(low_rank):
    small = WanTransformer(replace(CONFIG, num_layers=1)).eval().requires_grad_(False)
    small.load_state_dict({k: v for k, v in expert().state_dict().items() if "blocks.1." not in k})
    plain = small(*inputs())
    with pytest.raises(ValueError, match=r"changes blocks\.1\..*resolve it on this model"):
        apply_loras(small, [(low_rank, 1.0)])
    assert torch.equal(small(*inputs()), plain)


def test_quantised_layers_take_deltas_over_their_unpacked_weight(low_rank, tmp_path):
    model = expert()
    name = "blocks.0.self_attn.q"
    weight = model.get_parameter(f"{name}.weight").data
    scale = weight.abs().max() / 448
    packed = (weight / scale).to(torch.float8_e4m3fn)
    spec = Quant(format="float8_e4m3fn", shape=(128, 128), scale_shape=())
    replace_layers(model, {name: spec})
    layer = model.get_submodule(name)
    layer.load_state_dict(
        {"weight": packed, "weight_scale": scale, "bias": expert().get_submodule(name).bias},
        assign=True,
    )
    apply_loras(model, [(low_rank, 1.0)])
    x = torch.randn(2, 128)
    up, down = factors()[name]
    exact = packed.float() * scale + 0.75 * (up @ down)
    assert torch.allclose(layer(x), torch.nn.functional.linear(x, exact, layer.bias), atol=1e-5)
    apply_loras(model, ())
    assert torch.equal(layer(x), torch.nn.functional.linear(x, packed.float() * scale, layer.bias))
