"""A LoRA written in another dialect is the same LoRA."""

from __future__ import annotations

import pytest
import torch
from wanexperts.tests.wan.lora_writers import (
    MODULES,
    OFFICIAL,
    TABLES,
    WRITERS,
    expert,
    factors,
    largest,
    save,
    shapes,
    weights,
    write_full,
    write_low_rank,
)
from wanexperts.wan.lora import DIALECTS, read_lora, rename, resolve

LOW_RANK_ONLY = ("peft", "diffusers")
SPELLED = {
    "comfyui": "diffusion_model.blocks.1.self_attn.o.lora_up.weight",
    "bare": "blocks.1.self_attn.o.lora_up.weight",
    "kohya": "lora_unet_blocks_1_self_attn_o.lora_up.weight",
    "peft": "base_model.model.blocks.1.self_attn.o.lora_B.weight",
    "diffusers": "transformer.blocks.1.attn1.to_out.0.lora_B.weight",
}
Q = "diffusion_model.blocks.0.self_attn.q"


def section(tensors, path, name="lora"):
    (found,) = read_lora(save(dict(tensors), path / f"{name}.safetensors")).sections.values()
    return found


STORED = weights(expert())


def patched_by(part):
    """The weights of an expert under a LoRA."""
    deltas = resolve(part, shapes()).deltas
    return STORED | {name: delta.apply(STORED[name], 1.0) for name, delta in deltas.items()}


@pytest.mark.parametrize("target", DIALECTS)
@pytest.mark.parametrize("source", WRITERS)
def test_every_dialect_to_every_dialect(source, target, tmp_path):
    first = section(write_low_rank(WRITERS[source], factors()), tmp_path)
    written = rename(first, target)
    assert not written.left
    assert SPELLED[target] in written.tensors
    second = section(written.tensors, tmp_path, "renamed")
    resolved = resolve(second, shapes())
    assert resolved.used == resolved.modules == len(MODULES)
    assert largest(patched_by(second), patched_by(first)) < 2e-7
    back = rename(second, "comfyui")
    assert largest(patched_by(section(back.tensors, tmp_path, "back")), patched_by(first)) < 2e-7


@pytest.mark.parametrize("target", ["comfyui", "bare", "kohya"])
def test_full_deltas_are_kept_exactly(target, tmp_path):
    tensors = write_full(WRITERS["comfyui"], torch.Generator().manual_seed(5))
    tensors[f"{Q}.set_weight"] = torch.randn(128, 128)
    tensors["diffusion_model.blocks.1.self_attn.q.bias.set_weight"] = torch.randn(128)
    del tensors["diffusion_model.blocks.1.self_attn.q.diff_b"]
    first = section(tensors, tmp_path)
    written = rename(first, target)
    assert not written.left
    assert len(written.tensors) == len(tensors)
    got, wanted = patched_by(section(written.tensors, tmp_path, "r")), patched_by(first)
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)
    if target == "comfyui":
        assert written.tensors.keys() == tensors.keys()


@pytest.mark.parametrize("target", LOW_RANK_ONLY)
def test_what_a_dialect_cannot_say_is_told(target, tmp_path):
    tensors = write_low_rank(WRITERS["comfyui"], factors())
    tensors |= write_full(WRITERS["comfyui"], torch.Generator().manual_seed(5))
    written = rename(section(tensors, tmp_path), target)
    assert {name for name, _ in written.left} == {
        f"{row[OFFICIAL]}.{leaf}" if "norm" in row[OFFICIAL] else row[OFFICIAL]
        for row in TABLES
        for leaf in (("weight", "bias") if "norm3" in row[OFFICIAL] else ("weight",))
    }
    assert all("low rank alone" in reason for _, reason in written.left)
    biases = [key for key in written.tensors if key.endswith(".lora_B.bias")]
    assert len(biases) == len(MODULES)  # biases of adapted layers have a place there
    resolved = resolve(section(written.tensors, tmp_path, "r"), shapes())
    wanted = resolve(section(tensors, tmp_path), shapes())
    for name in (f"{row[OFFICIAL]}.bias" for row in MODULES):
        zero = torch.zeros(shapes()[name])
        assert torch.equal(
            resolved.deltas[name].apply(zero, 1.0), wanted.deltas[name].apply(zero, 1.0)
        )


KINDS = {
    "loha": {"hada_w1_a": (96, 2), "hada_w1_b": (2, 128), "hada_w2_a": (96, 2), "hada_w2_b": (2, 128)},
    "lokr": {"lokr_w1": (8, 4), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 32)},
    "lokr whole": {"lokr_w1": (8, 4), "lokr_w2": (12, 32)},
    "dora": {"lora_up.weight": (96, 2), "lora_down.weight": (2, 128), "dora_scale": (96, 1)},
    "dora by column": {"lora_up.weight": (96, 2), "lora_down.weight": (2, 128), "dora_scale": (1, 128)},
}  # fmt: skip


@pytest.mark.parametrize("target", DIALECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(kind, target, tmp_path):
    parts = {part: torch.rand(size) for part, size in KINDS[kind].items()} | {
        "alpha": torch.tensor(5.0)
    }
    tensors = {f"diffusion_model.blocks.1.ffn.0.{part}": t for part, t in parts.items()}
    first = section(tensors, tmp_path)
    written = rename(first, target)
    if target in LOW_RANK_ONLY and kind != "dora":
        assert [name for name, _ in written.left] == ["blocks.1.ffn.0.weight"]
        assert not written.tensors
        return
    assert not written.left
    assert largest(patched_by(section(written.tensors, tmp_path, "r")), patched_by(first)) < 5e-7


def test_tucker_factors_are_kept_where_they_have_names(tmp_path):
    parts = {
        "lora_up.weight": (128, 2, 1, 1, 1),
        "lora_down.weight": (2, 16, 1, 1, 1),
        "lora_mid.weight": (2, 2, 1, 2, 2),
    }
    first = section(
        {f"diffusion_model.patch_embedding.{k}": torch.randn(s) for k, s in parts.items()}, tmp_path
    )
    second = section(rename(first, "kohya").tensors, tmp_path, "r")
    assert largest(patched_by(second), patched_by(first)) < 2e-7
    assert len(rename(first, "diffusers").left) == 1


def test_two_experts_in_one_file_and_back(tmp_path):
    parts = {role: section(write_low_rank(WRITERS["comfyui"], factors(seed)), tmp_path, f"style_{role}")
             for role, seed in (("high_noise", 1), ("low_noise", 2))}  # fmt: skip
    together = {
        key: t
        for role, part in parts.items()
        for key, t in rename(part, "diffusers", role).tensors.items()
    }
    assert "transformer_2.blocks.0.attn1.to_q.lora_A.weight" in together
    file = read_lora(save(together, tmp_path / "both.safetensors"))
    assert file.sections.keys() == parts.keys()
    assert (file.role, file.base) == (None, "Wan2.2")
    for role, part in parts.items():
        assert largest(patched_by(file.sections[role]), patched_by(part)) < 2e-7
        split = section(rename(file.sections[role], "comfyui").tensors, tmp_path, "split")
        assert largest(patched_by(split), patched_by(part)) < 2e-7


@pytest.mark.parametrize(("alpha", "kept"), [(2.0, True), (4.0, True), (3.0, False)])
def test_folding_keeps_the_dtype_where_that_is_exact(alpha, kept, tmp_path):
    torch.manual_seed(7)
    tensors = {f"{Q}.lora_up.weight": torch.randn(128, 4).bfloat16(),
               f"{Q}.lora_down.weight": torch.randn(4, 128).bfloat16(), f"{Q}.alpha": torch.tensor(alpha)}  # fmt: skip
    first = section(tensors, tmp_path)
    written = rename(first, "diffusers").tensors
    up = written["transformer.blocks.0.attn1.to_q.lora_B.weight"]
    assert up.dtype == (torch.bfloat16 if kept else torch.float32)
    assert torch.equal(up.float(), tensors[f"{Q}.lora_up.weight"].float() * alpha / 4)
    assert largest(patched_by(section(written, tmp_path, "r")), patched_by(first)) < 2e-7


@pytest.mark.parametrize("target", DIALECTS)
def test_scaled_fp8_becomes_plain(target, tmp_path):
    tensors = {}
    for key, tensor in write_low_rank(WRITERS["comfyui"], factors()).items():
        if key.endswith("weight"):
            tensors[key] = (tensor * 700).to(torch.float8_e4m3fn)
            tensors[key.replace(".weight", ".scale_weight")] = torch.tensor(1 / 700)
        else:
            tensors[key] = tensor
    first = section(tensors, tmp_path)
    written = rename(first, target).tensors
    assert not any("scale_weight" in key for key in written)
    assert largest(patched_by(section(written, tmp_path, "r")), patched_by(first)) < 5e-7


def test_modules_of_other_wan_networks_are_renamed_too(tmp_path):
    key = "transformer.blocks.39.attn2.add_k_proj"
    tensors = {f"{key}.lora_A.weight": torch.ones(2, 8), f"{key}.lora_B.weight": torch.ones(8, 2)}
    written = rename(section(tensors, tmp_path), "kohya")
    assert "lora_unet_blocks_39_cross_attn_k_img.lora_up.weight" in written.tensors


def test_strangers_are_left_and_other_networks_refused(tmp_path):
    tensors = write_low_rank(WRITERS["comfyui"], factors())
    tensors["lora_te1_x.lora_up.weight"] = torch.ones(2, 2)
    written = rename(section(tensors, tmp_path), "bare")
    assert [name for name, _ in written.left] == ["lora_te1_x"]
    foreign = {"lora_unet_double_blocks_0_img_attn_proj.lora_up.weight": torch.ones(2, 2)}
    with pytest.raises(ValueError, match="another network"):
        rename(section(foreign, tmp_path, "f"), "bare")
    with pytest.raises(ValueError, match="dialect 'flux' is unknown; use one of comfyui"):
        rename(section(tensors, tmp_path), "flux")
