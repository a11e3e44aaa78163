"""One delta in every dialect gives one set of weights; full deltas reach every kind of parameter."""

from __future__ import annotations

import json

import pytest
import torch
from wanexperts.tests.wan.lora_writers import (
    ALPHA,
    MODULES,
    OFFICIAL,
    RANK,
    TABLES,
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
from wanexperts.wan.lora import (
    apply_loras,
    coverage,
    parameter_shapes,
    read_lora,
    resolve,
    scaling,
)

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


def only_section(path):
    (section,) = read_lora(path).sections.values()
    return section


def test_the_tables_name_every_parameter():
    named = {f"{row[OFFICIAL]}.{leaf}" for row in MODULES for leaf in ("weight", "bias")}
    named |= {row[OFFICIAL] for row in TABLES} | {f"{row[OFFICIAL]}.weight" for row in TABLES}
    named |= {f"{row[OFFICIAL]}.bias" for row in TABLES if "norm3" in row[OFFICIAL]}
    assert shapes().keys() <= named
    assert parameter_shapes(expert()) == shapes()


@pytest.mark.parametrize("dialect", WRITERS)
@pytest.mark.parametrize("strength", [1.0, -0.7])
def test_every_dialect_gives_the_same_weights(dialect, strength, tmp_path, record_property):
    made, model = factors(), expert()
    path = save(write_low_rank(WRITERS[dialect], made), tmp_path / "lora.safetensors")
    resolved = resolve(only_section(path), shapes())
    assert coverage(resolved) == f"{len(MODULES)} of {len(MODULES)} modules"
    assert resolved.deltas.keys() == {f"{row[OFFICIAL]}.weight" for row in MODULES}
    apply_loras(model, [(resolved, strength)])
    difference = largest(weights(model), merged(expert(), made, strength))
    record_property("lora_dialects_vs_float64_merge", difference)
    assert difference < 1e-6  # measured 4.6e-8


@pytest.mark.parametrize("dialect", ["comfyui", "bare", "kohya", "lycoris", "diffusers"])
def test_full_deltas_in_every_dialect(dialect, tmp_path):
    generator = torch.Generator().manual_seed(5)
    tensors = write_full(WRITERS[dialect], generator)
    model = expert()
    before = weights(model)
    resolved = resolve(only_section(save(tensors, tmp_path / "l.safetensors")), shapes())
    assert not resolved.left
    apply_loras(model, [(resolved, 0.5)])
    generator = torch.Generator().manual_seed(5)
    comfy = write_full(WRITERS["comfyui"], generator)
    wanted = {
        name: value
        + 0.5 * comfy.get(f"diffusion_model.{name.removesuffix('.weight')}.diff", torch.zeros(()))
        + 0.5 * comfy.get(f"diffusion_model.{name.removesuffix('.bias')}.diff_b", torch.zeros(()))
        for name, value in before.items()
    }
    assert largest(weights(model), wanted) < 1e-6
    assert len(resolved.deltas) == sum(not torch.equal(wanted[k], before[k]) for k in before)


def test_the_delta_of_a_modulation_has_three_spellings(tmp_path):
    diff = torch.randn(1, 6, 128)
    spellings = ["diffusion_model.blocks.1.diff_m", "diffusion_model.blocks.1.modulation.diff",
                 "transformer.blocks.1.scale_shift_table.diff", "lora_unet_blocks_1.diff_m"]  # fmt: skip
    for spelling in spellings:
        section = only_section(save({spelling: diff}, tmp_path / "m.safetensors"))
        resolved = resolve(section, shapes())
        assert list(resolved.deltas) == ["blocks.1.modulation"]
        change = resolved.deltas["blocks.1.modulation"].apply(torch.zeros(1, 6, 128), 1.0)
        assert torch.equal(change, diff)


@pytest.mark.parametrize("key", ["diffusion_model.blocks.0.norm3", "transformer.blocks.0.norm2"])
def test_a_norm_is_that_of_its_own_naming(key, tmp_path):
    """The affine norm is norm3 in official names, norm2 in diffusers'; the others have no weights."""
    section = only_section(save({f"{key}.diff": torch.ones(128)}, tmp_path / "n.safetensors"))
    assert list(resolve(section, shapes()).deltas) == ["blocks.0.norm3.weight"]


@pytest.mark.parametrize("attn", [("attn1", "self_attn"), ("attn2", "cross_attn")])
def test_attention_one_is_self_attention(attn, tmp_path):
    theirs, ours = attn
    base = f"transformer.blocks.0.{theirs}.to_out.0"
    tensors = {
        f"{base}.lora_A.weight": torch.ones(2, 128),
        f"{base}.lora_B.weight": torch.ones(128, 2),
    }
    resolved = resolve(only_section(save(tensors, tmp_path / "a.safetensors")), shapes())
    assert list(resolved.deltas) == [f"blocks.0.{ours}.o.weight"]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_stored_dtypes(dtype, tmp_path):
    made = {name: tuple(t.to(dtype).float() for t in pair) for name, pair in factors().items()}
    tensors = write_low_rank(WRITERS["comfyui"], made)
    tensors = {k: t if k.endswith("alpha") else t.to(dtype) for k, t in tensors.items()}
    model = expert()
    resolved = resolve(only_section(save(tensors, tmp_path / "l.safetensors")), shapes())
    assert all(delta.up.dtype == dtype for delta in resolved.deltas.values())
    apply_loras(model, [(resolved, 1.0)])
    assert largest(weights(model), merged(expert(), made)) < 1e-6


@pytest.mark.parametrize("leaf", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("rows", [False, True], ids=["per tensor", "per row"])
def test_scaled_fp8(leaf, rows, tmp_path):
    made, tensors = {}, {"scaled_fp8": torch.zeros(2)}
    for name, pair in factors().items():
        exact = []
        for tensor, kind in zip(pair, ("lora_up", "lora_down"), strict=True):
            axes = tuple(range(1, tensor.ndim)) if rows else None
            scale = tensor.abs().amax(axes, keepdim=True) / 448
            packed = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[f"diffusion_model.{name}.{kind}.weight"] = packed
            tensors[f"diffusion_model.{name}.{kind}.{leaf}"] = (
                scale.flatten() if rows else scale.view(())
            )
            exact.append(packed.double() * scale)
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(ALPHA)
        made[name] = tuple(exact)
    model = expert()
    resolved = resolve(only_section(save(tensors, tmp_path / "l.safetensors")), shapes())
    assert not resolved.left
    apply_loras(model, [(resolved, 1.0)])
    assert largest(weights(model), merged(expert(), made)) < 1e-6


PEFT_CASES = {
    "alpha": ({"lora_alpha": 6}, 6 / RANK),
    "stabilised": ({"lora_alpha": 6, "use_rslora": True}, 6 / RANK**0.5),
    "stabilised, no alpha": ({"use_rslora": True}, RANK / RANK**0.5),
    "nothing": ({}, 1.0),
    "pattern": ({"lora_alpha": 6, "alpha_pattern": {"blocks.0.attn1.to_q": 8}}, 8 / RANK),
    "pattern end": ({"lora_alpha": 6, "alpha_pattern": {"to_q": 8}}, 8 / RANK),
    "other pattern": ({"lora_alpha": 6, "alpha_pattern": {"o_q": 8, "ffn": 9}}, 6 / RANK),
}


@pytest.mark.parametrize("case", PEFT_CASES)
@pytest.mark.parametrize("place", ["header", "beside"])
def test_peft_configuration(case, place, tmp_path):
    config, wanted = PEFT_CASES[case]
    prefix = "transformer." if place == "header" else "base_model.model."
    base = f"{prefix}blocks.0.attn1.to_q"
    tensors = {
        f"{base}.lora_A.weight": torch.randn(RANK, 128),
        f"{base}.lora_B.weight": torch.randn(128, RANK),
    }
    if place == "header":
        packed = {f"transformer.{key}": value for key, value in config.items()}
        path = save(tensors, tmp_path / "x.safetensors", lora_adapter_metadata=json.dumps(packed))
    else:
        path = save(tensors, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    (delta,) = resolve(only_section(path), shapes()).deltas.values()
    assert delta.scale == pytest.approx(wanted)


def test_each_expert_has_its_own_peft_configuration(tmp_path):
    tensors = {
        f"{prefix}blocks.0.attn1.to_q.lora_{side}.weight": torch.randn(shape)
        for prefix in ("transformer.", "transformer_2.")
        for side, shape in (("A", (RANK, 128)), ("B", (128, RANK)))
    }
    config = {"transformer.lora_alpha": 8, "transformer_2.lora_alpha": 2, "transformer_2.r": RANK}
    path = save(tensors, tmp_path / "x.safetensors", lora_adapter_metadata=json.dumps(config))
    sections = read_lora(path).sections
    assert sections.keys() == {"high_noise", "low_noise"}
    scales = {
        name: next(iter(resolve(s, shapes()).deltas.values())).scale for name, s in sections.items()
    }
    assert scales == {"high_noise": 2.0, "low_noise": 0.5}


def test_the_bias_of_pefts_upper_matrix_is_scaled_with_it(tmp_path):
    base = "transformer.blocks.0.attn1.to_q"
    bias = torch.randn(128)
    tensors = {f"{base}.lora_A.weight": torch.randn(RANK, 128), f"{base}.lora_B.weight": torch.randn(128, RANK),
               f"{base}.lora_B.bias": bias, f"{base}.alpha": torch.tensor(ALPHA)}  # fmt: skip
    resolved = resolve(only_section(save(tensors, tmp_path / "b.safetensors")), shapes())
    change = resolved.deltas["blocks.0.self_attn.q.bias"].apply(torch.zeros(128), 1.0)
    assert torch.allclose(change, bias * ALPHA / RANK, rtol=1e-6)


def test_ranks_and_scales_are_told(tmp_path):
    section = only_section(
        save(write_low_rank(WRITERS["kohya"], factors()), tmp_path / "l.safetensors")
    )
    assert section.dialect == "kohya"
    assert scaling(resolve(section, shapes())) == "LoRA, rank 4, scale 0.75"
