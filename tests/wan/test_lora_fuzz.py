"""Files nobody would write: refused in a sentence, or told as unused; never another exception."""

from __future__ import annotations

import json
import random

import pytest
import torch
from wanexperts.tests.wan.lora_writers import (
    WRITERS,
    expert,
    factors,
    save,
    shapes,
    weights,
    write_low_rank,
)
from wanexperts.wan.lora import (
    apply_loras,
    coverage,
    lora_card,
    read_lora,
    relative_norm,
    rename,
    resolve,
    scaling,
)

PARTS = [
    "lora_up.weight", "lora_down.weight", "lora_mid.weight", "lora_A.weight", "lora_B.weight", "lora_B.bias",
    "alpha", "dora_scale", "lora_magnitude_vector", "diff", "diff_b", "diff_m", "set_weight", "w_norm", "b_norm",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b",
    "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "lora_up.scale_weight", "scale_weight", "weight_scale",
]  # fmt: skip
PLACES = ["blocks.0.self_attn.q", "patch_embedding", "blocks.0.norm3", "blocks.1.modulation", "blocks.1", "head",
          "head.modulation", "blocks.0.self_attn.q.bias", "nonsense"]  # fmt: skip
DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int8,
    torch.int64,
]
SIZES = [0, 1, 2, 2, 3, 128, 128, 128]


@pytest.mark.parametrize("seed", range(8))
def test_random_parts_of_random_shapes(seed, tmp_path):
    rng = random.Random(seed)
    model = expert()
    stored = weights(model)
    outcomes = set()
    for number in range(40):
        valid = write_low_rank(WRITERS["comfyui"], factors()) if number % 2 else {}
        tensors = {key: t for key, t in valid.items() if ".blocks.1." in key}
        for _ in range(rng.randint(1, 6)):
            shape = [rng.choice(SIZES) for _ in range(rng.choice([0, 1, 2, 2, 2, 2, 3, 5]))]
            if torch.Size(shape).numel() > 100_000:
                continue
            tensor = torch.randn(shape).to(rng.choice(DTYPES))
            tensors[
                f"diffusion_model.{rng.choice(PLACES[: rng.choice([1, 9])])}.{rng.choice(PARTS)}"
            ] = tensor
        path = save(tensors, tmp_path / f"{number}.safetensors")
        try:
            (section,) = read_lora(path).sections.values()
            resolved = resolve(section, shapes())
        except ValueError:
            outcomes.add("refused")
            continue
        outcomes.add("used")
        told = {name for name, _ in resolved.left}
        assert resolved.used + len(told) == resolved.modules
        assert coverage(resolved).startswith(f"{resolved.used} of {resolved.modules}")
        assert scaling(resolved)
        relative_norm(resolved, stored.__getitem__)
        rename(section, rng.choice(["comfyui", "kohya", "diffusers", "peft", "bare"]))
        apply_loras(model, [(resolved, 1.0)])
        assert {name: t.shape for name, t in weights(model).items()} == {
            name: t.shape for name, t in stored.items()
        }
    assert outcomes == {"refused", "used"}


@pytest.mark.parametrize("seed", range(6))
def test_factors_with_one_axis_wrong(seed, tmp_path):
    """Valid files but for one tensor, cut or stretched: that module is told, the others act."""
    rng = random.Random(seed)
    for number in range(10):
        tensors = write_low_rank(WRITERS["comfyui"], factors())
        key = rng.choice([k for k in tensors if k.endswith("weight")])
        axis = rng.randrange(tensors[key].ndim)
        tensors[key] = torch.cat([tensors[key]] * 2, dim=axis)
        (section,) = read_lora(save(tensors, tmp_path / f"{number}.safetensors")).sections.values()
        resolved = resolve(section, shapes())
        module = key.rsplit(".lora_", 1)[0]
        assert [name for name, _ in resolved.left] == [module]
        assert f"{module.removeprefix('diffusion_model.')}.weight" not in resolved.deltas
        assert resolved.used == resolved.modules - 1


def test_both_experts_in_scaled_fp8_with_strays(tmp_path):
    """Scales belong to the expert their prefix names; keys that name none go to the first."""
    tensors = {"scaled_fp8": torch.zeros(2)}
    for prefix, factor in (("transformer.", 2.0), ("transformer_2.", 3.0)):
        base = f"{prefix}blocks.0.attn1.to_q"
        tensors |= {
            f"{base}.lora_A.weight": torch.ones(1, 128).to(torch.float8_e4m3fn),
            f"{base}.lora_A.scale_weight": torch.tensor(factor),
            f"{base}.lora_B.weight": torch.ones(128, 1),
        }
    file = read_lora(save(tensors, tmp_path / "both.safetensors"))
    scales = {}
    for name, section in file.sections.items():
        resolved = resolve(section, shapes())
        assert not resolved.left
        scales[name] = resolved.deltas["blocks.0.self_attn.q.weight"].scale
    assert scales == {"high_noise": 2.0, "low_noise": 3.0}


@pytest.mark.parametrize(
    ("prefix", "role"), [("transformer_1.", "high_noise"), ("transformer_2.", "low_noise")]
)
def test_a_stray_key_does_not_make_a_second_section(prefix, role, tmp_path):
    base = f"{prefix}blocks.0.attn1.to_q"
    tensors = {f"{base}.lora_A.weight": torch.ones(1, 128), f"{base}.lora_B.weight": torch.ones(128, 1),
               "training.step": torch.ones(1)}  # fmt: skip
    file = read_lora(save(tensors, tmp_path / "x.safetensors"))
    assert list(file.sections) == [role]
    assert (file.role, file.base) == (role, "Wan2.2")
    assert resolve(file.sections[role], shapes()).unused == ("training.step: not a LoRA tensor",)


def test_a_foreign_file_is_refused_before_its_weights_are_read(tmp_path):
    base = "diffusion_model.double_blocks.0.img_attn_qkv"
    tensors = {
        f"{base}.lora_A.weight": torch.full((2, 8), torch.nan),
        f"{base}.lora_B.weight": torch.ones(8, 2),
    }
    (section,) = read_lora(save(tensors, tmp_path / "x.safetensors")).sections.values()
    with pytest.raises(ValueError, match="another network"):
        resolve(section, shapes())


def test_names_that_would_break_a_line_are_shown_escaped(tmp_path):
    odd = "diffusion_model.blocks\t\x1b[31m.0.x" + "y" * 2000
    tensors = write_low_rank(WRITERS["comfyui"], factors())
    tensors |= {f"{odd}.lora_A.weight": torch.ones(1, 1), f"{odd}.lora_B.weight": torch.ones(1, 1)}
    (section,) = read_lora(save(tensors, tmp_path / "x.safetensors")).sections.values()
    resolved = resolve(section, shapes())
    for text in (coverage(resolved), *resolved.unused):
        assert text.isprintable()
        assert len(text) < 1000
    only = {key: t for key, t in tensors.items() if key.startswith(odd)}
    (section,) = read_lora(save(only, tmp_path / "y.safetensors")).sections.values()
    with pytest.raises(ValueError, match="another network") as caught:
        resolve(section, shapes())
    assert str(caught.value).isprintable()


def with_config(folder, config):
    base = "transformer.blocks.0.attn1.to_q"
    tensors = {
        f"{base}.lora_A.weight": torch.ones(4, 128),
        f"{base}.lora_B.weight": torch.ones(128, 4),
    }
    return save(tensors, folder / "x.safetensors", lora_adapter_metadata=json.dumps(config))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"lora_alpha": "x"}, 'an alpha is "x" where a number belongs; correct it'),
        ({"lora_alpha": [1]}, "where a number belongs"),
        ({"lora_alpha": True}, "where a number belongs"),
        ({"lora_alpha": "nan"}, "damaged PEFT configuration"),
        ({"alpha_pattern": [1]}, "alpha_pattern is .* where a table of numbers belongs"),
        ({"alpha_pattern": {"to_q": "y"}}, "where a number belongs"),
        ({"use_rslora": 3}, "use_rslora is 3 where true or false belongs"),
    ],
    ids=str,
)
def test_wrong_values_of_a_configuration_are_refused(config, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        read_lora(with_config(tmp_path, config))


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": None, "alpha_pattern": None, "use_rslora": None}, 1.0),
        ({"lora_alpha": "8"}, 2.0),
        ({"alpha_pattern": {"to_q": "2"}}, 0.5),
    ],
    ids=str,
)
def test_numbers_of_a_configuration_as_text_or_null(config, scale, tmp_path):
    (section,) = read_lora(with_config(tmp_path, config)).sections.values()
    assert resolve(section, shapes()).deltas["blocks.0.self_attn.q.weight"].scale == scale


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\xff\xfe{", r"adapter_config\.json is not UTF-8 text; download it again"),
        (b" " * 1024 * 1024 + b"{}", r"adapter_config\.json is larger than 1 MB"),
    ],
    ids=["bytes", "huge"],
)
def test_a_configuration_beside_the_file_is_never_passed_over(content, sentence, tmp_path):
    path = with_config(tmp_path, {}).with_name("adapter_model.safetensors")
    save({"blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 128)}, path)
    (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_lora(path)


@pytest.mark.parametrize(
    ("name", "base"),
    [("wan2.1_style_high_noise", "Wan2.1"), ("style_high_noise", "Wan2.2"), ("style", None)],
)
def test_a_release_in_the_name_comes_before_what_a_role_implies(name, base, tmp_path):
    tensors = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(4, 128)}
    assert read_lora(save(tensors, tmp_path / f"{name}.safetensors")).base == base


def test_a_configuration_too_deep_to_parse_is_damaged(tmp_path):
    tensors = {"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 128)}
    path = save(tensors, tmp_path / "x.safetensors", lora_adapter_metadata="[" * 200_000)
    with pytest.raises(ValueError, match="damaged PEFT configuration"):
        read_lora(path)


def test_the_card_claims_no_more_than_names_tell(tmp_path):
    """A matrix of any width is known by name; whether it acts, an expert says."""
    base = "diffusion_model.blocks.0.self_attn.q"
    tensors = {f"{base}.lora_A.weight": torch.ones(4, 7), f"{base}.lora_B.weight": torch.ones(7, 4)}
    card = lora_card(save(tensors, tmp_path / "x.safetensors"))
    assert "1 of 1 module names known" in card
    assert "of 1 modules" not in card
