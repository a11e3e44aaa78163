"""What does not fit is told with its reason; what is no LoRA of this network is refused in one sentence."""

from __future__ import annotations

import json

import pytest
import torch
from wanexperts.tests.wan.lora_writers import (
    MODULES,
    WRITERS,
    factors,
    save,
    shapes,
    write_low_rank,
)
from wanexperts.wan.lora import coverage, read_lora, resolve

N = len(MODULES)
Q = "diffusion_model.blocks.0.self_attn.q"


def complete() -> dict[str, torch.Tensor]:
    return write_low_rank(WRITERS["comfyui"], factors())


def pair(
    module: str, rows: int = 128, columns: int = 128, rank: int = 2
) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": torch.randn(rank, columns),
        f"{module}.lora_B.weight": torch.randn(rows, rank),
    }


def load(tensors, path, **metadata):
    (section,) = read_lora(save(tensors, path / "lora.safetensors", **metadata)).sections.values()
    return resolve(section, shapes())


UNUSED = {
    "image branch": (
        pair("diffusion_model.blocks.0.cross_attn.k_img"),
        ["diffusion_model.blocks.0.cross_attn.k_img: not in this network"], 1),
    "image embedding": (
        pair("diffusion_model.img_emb.proj.1"), ["diffusion_model.img_emb.proj.1: not in this network"], 1),
    "text encoder": (
        pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"),
        ["lora_te1_text_model_encoder_layers_0_mlp_fc1: not in this network"], 1),
    "block beyond the last": (
        pair("diffusion_model.blocks.7.self_attn.q"), ["diffusion_model.blocks.7.self_attn.q: not in this network"], 1),
    "no LoRA tensor": (
        {"diffusion_model.blocks.0.self_attn.q.reshape_weight": torch.ones(2)},
        ["diffusion_model.blocks.0.self_attn.q.reshape_weight: not a LoRA tensor"], 1),
    "an orthogonal adapter": (
        {"diffusion_model.blocks.0.self_attn.q.oft_blocks": torch.ones(2, 2, 2)},
        ["diffusion_model.blocks.0.self_attn.q.oft_blocks: not a LoRA tensor"], 1),
    "integers": (
        {"diffusion_model.blocks.0.norm3.diff": torch.ones(128, dtype=torch.int8)},
        ["diffusion_model.blocks.0.norm3.diff: stored as I8, which is not read in a LoRA"], 1),
    "36 channels on 16": (
        {"diffusion_model.patch_embedding.diff": torch.ones(128, 36, 1, 2, 2)},
        ["diffusion_model.patch_embedding: has a second change of its weight (diff)"], 0),
    "bias of what has none": (
        {"diffusion_model.blocks.0.self_attn.norm_q.diff_b": torch.ones(128)},
        ["diffusion_model.blocks.0.self_attn.norm_q: the network has no blocks.0.self_attn.norm_q.bias"], 1),
    "twice under two names": (
        pair("transformer.blocks.0.attn1.to_q"),
        ["transformer.blocks.0.attn1.to_q: changes blocks.0.self_attn.q.weight a second time"], 1),
    "twice under two prefixes": (
        pair("pipe.dit.blocks.0.self_attn.q"),
        ["pipe.dit.blocks.0.self_attn.q: changes blocks.0.self_attn.q.weight a second time"], 1),
    "twice under two suffixes": (
        {f"{Q}.lora_mid.weight": torch.eye(4), f"{Q}.lora.mid.weight": torch.eye(4)},
        [f"{Q}.lora_mid.weight: says again what {Q}.lora.mid.weight says"], 1),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSED)
def test_what_is_left_is_told(case, tmp_path):
    tensors, unused, more = UNUSED[case]
    resolved = load({**complete(), **tensors}, tmp_path)
    assert sorted(resolved.unused) == sorted(unused)
    assert resolved.modules == N + more
    assert resolved.used == (N if more else N - 1)
    line = coverage(resolved)
    assert line.startswith(f"{resolved.used} of {resolved.modules} modules, unused: ")
    assert all(text.partition(": ")[2] in line for text in unused)
    kept = resolved.deltas["blocks.0.self_attn.q.weight"].up
    assert torch.equal(kept, factors()["blocks.0.self_attn.q"][0])


ALONE = {
    "up alone": ({f"{Q}.lora_up.weight": torch.ones(128, 2)}, "has up and not what belongs to it"),
    "down and alpha": (
        {f"{Q}.lora_down.weight": torch.ones(2, 128), f"{Q}.alpha": torch.tensor(1.0)},
        "has alpha, down and not what belongs to it"),
    "magnitude alone": ({f"{Q}.dora_scale": torch.ones(128, 1)}, "has dora_scale and not what belongs to it"),
    "ranks differ": (
        {f"{Q}.lora_up.weight": torch.ones(128, 2), f"{Q}.lora_down.weight": torch.ones(3, 128)},
        "has 2 columns up and 3 rows down"),
    "wrong width": (pair(Q, 96, 128), "makes 96 x 128, the weight is 128 x 128"),
    "wrong mid": (
        {**pair(Q), f"{Q}.lora_mid.weight": torch.ones(5, 5)}, "has factors that do not fit each other"),
    "vectors": (
        {f"{Q}.lora_up.weight": torch.ones(2), f"{Q}.lora_down.weight": torch.ones(2)},
        "has factors that are no matrices"),
    "alpha of two": ({**pair(Q), f"{Q}.alpha": torch.ones(2)}, "has an alpha that is not one number"),
    "wrong magnitude": ({**pair(Q), f"{Q}.dora_scale": torch.ones(96, 1)}, "has 96 magnitudes for 128 x 128"),
    "half a LoHa": (
        {f"{Q}.hada_w1_a": torch.ones(128, 2), f"{Q}.hada_w1_b": torch.ones(2, 128)},
        "has hada_w1_a, hada_w1_b and not what belongs to it"),
    "LoHa of two sizes": (
        {f"{Q}.hada_w1_a": torch.ones(128, 2), f"{Q}.hada_w1_b": torch.ones(2, 128),
         f"{Q}.hada_w2_a": torch.ones(128, 2), f"{Q}.hada_w2_b": torch.ones(2, 64)},
        "has factors that do not fit each other"),
    "LoHa with one core": (
        {f"{Q}.hada_w1_a": torch.ones(2, 128), f"{Q}.hada_w1_b": torch.ones(2, 128), f"{Q}.hada_t1": torch.ones(2, 2),
         f"{Q}.hada_w2_a": torch.ones(2, 128), f"{Q}.hada_w2_b": torch.ones(2, 128)},
        "has one Tucker core of two"),
    "half a LoKr": (
        {f"{Q}.lokr_w1": torch.ones(8, 8), f"{Q}.lokr_w2_a": torch.ones(16, 2)},
        "has lokr_w1, lokr_w2_a and not what belongs to it"),
    "LoKr of another size": (
        {f"{Q}.lokr_w1": torch.ones(8, 8), f"{Q}.lokr_w2": torch.ones(16, 8)},
        "makes 128 x 64, the weight is 128 x 128"),
    "LoKr of a vector": (
        {f"{Q}.lokr_w1": torch.ones(8), f"{Q}.lokr_w2": torch.ones(16, 8)}, "has factors that are no matrices"),
    "diff of another shape": ({f"{Q}.diff": torch.ones(128, 64)}, "has shape 128 x 64 instead of 128 x 128"),
    "set of another shape": ({f"{Q}.set_weight": torch.ones(64)}, "has shape 64 instead of 128 x 128"),
    "empty": ({f"{Q}.diff": torch.ones(0, 128)}, "has shape 0 x 128 instead of 128 x 128"),
    "a number": ({f"{Q}.lora_up.weight": torch.tensor(1.0), f"{Q}.lora_down.weight": torch.tensor(1.0)},
                 "has factors that are no matrices"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALONE)
def test_a_module_that_does_not_fit(case, tmp_path):
    tensors, reason = ALONE[case]
    others = {key: t for key, t in complete().items() if not key.startswith(f"{Q}.")}
    resolved = load({**others, **tensors}, tmp_path)
    assert resolved.unused == (f"{Q}: {reason}",)
    assert resolved.used == N - 1 == len(resolved.deltas)


def test_an_image_to_video_lora_of_the_other_release(tmp_path):
    """Patch embedding of 36 channels and an image branch: the rest acts, and the line stays short."""
    tensors = {k: t for k, t in complete().items() if ".patch_embedding." not in k}
    tensors["diffusion_model.patch_embedding.diff"] = torch.ones(128, 36, 1, 2, 2)
    tensors["diffusion_model.patch_embedding.diff_b"] = torch.ones(128)
    for block in range(2):
        for name in ("k_img", "v_img"):
            tensors |= pair(f"diffusion_model.blocks.{block}.cross_attn.{name}")
    path = save(tensors, tmp_path / "lora.safetensors")
    file = read_lora(path)
    assert file.base == "Wan2.1"
    assert file.role is None
    resolved = resolve(file.sections["any"], shapes())
    assert "patch_embedding.bias" in resolved.deltas
    assert coverage(resolved) == (
        f"{N - 1} of {N + 4} modules, unused: diffusion_model.blocks.0.cross_attn.k_img, diffusion_model.blocks.0.cross_attn.v_img, "
        "diffusion_model.blocks.1.cross_attn.k_img and 1 more (not in this network); "
        "diffusion_model.patch_embedding (has shape 128 x 36 x 1 x 2 x 2 instead of 128 x 16 x 1 x 2 x 2)"
    )


FOREIGN = {
    "SD 1.5": {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (320, 320)},
    "SDXL": {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (640, 640),
             "lora_te1_text_model_encoder_layers_0_mlp_fc1": (768, 768)},
    "Flux": {"transformer.transformer_blocks.0.attn.to_q": (3072, 3072),
             "transformer.single_transformer_blocks.0.proj_mlp": (12288, 3072)},
    "Flux kohya": {"lora_unet_double_blocks_0_img_attn_proj": (3072, 3072)},
    "HunyuanVideo": {"diffusion_model.double_blocks.0.img_attn_qkv": (9216, 3072)},
    "Qwen-Image": {"diffusion_model.transformer_blocks.0.attn.to_k": (3072, 3072)},
    "LTX": {"diffusion_model.transformer_blocks.0.attn1.to_k": (2048, 2048)},
    "text encoder": {"text_model.encoder.layers.0.self_attn.q_proj": (768, 768)},
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_loras_of_other_networks_are_refused(case, tmp_path):
    tensors = {}
    for module, (rows, columns) in FOREIGN[case].items():
        tensors |= pair(module, rows, columns)
    path = save(tensors, tmp_path / "lora.safetensors")
    (section,) = read_lora(path).sections.values()
    with pytest.raises(ValueError, match="is a LoRA of another network") as caught:
        resolve(section, shapes())
    sentence = str(caught.value)
    assert str(path) in sentence
    assert any(name.partition(".")[2] in sentence for name in FOREIGN[case])
    assert "\n" not in sentence


def test_one_module_that_fits_by_chance_does_not_make_it_a_wan_lora(tmp_path):
    tensors = pair(Q)
    for block in range(12):
        tensors |= pair(f"diffusion_model.double_blocks.{block}.img_attn_qkv", 9216, 3072)
    with pytest.raises(ValueError, match="another network"):
        load(tensors, tmp_path)


def test_a_wan_lora_of_another_size_is_refused_by_its_size(tmp_path):
    tensors = {}
    for block in range(2):
        for name in "qkvo":
            tensors |= pair(f"diffusion_model.blocks.{block}.self_attn.{name}", 3072, 3072)
    with pytest.raises(ValueError, match="3072 x 3072, the weight is 128 x 128; download it again, or choose a LoRA of the same model size"):  # fmt: skip
        load(tensors, tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("leaf", ["lora_up.weight", "alpha"])
def test_nan_and_infinity_are_refused(value, dtype, leaf, tmp_path):
    tensors = complete()
    bad = tensors[f"{Q}.{leaf}"].clone().to(dtype)
    bad.view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"NaN or infinite values .*{leaf}"):
        load({**tensors, f"{Q}.{leaf}": bad}, tmp_path)


def test_nan_in_an_fp8_file_or_its_scale_is_refused(tmp_path):
    tensors = complete()
    packed = tensors[f"{Q}.lora_up.weight"].to(torch.float8_e4m3fn)
    bad = packed.clone()
    bad.view(torch.uint8)[0, 0] = 0x7F
    for extra in ({f"{Q}.lora_up.weight": bad},
                  {f"{Q}.lora_up.weight": packed, f"{Q}.lora_up.scale_weight": torch.tensor(float("inf"))},
                  {f"{Q}.lora_up.weight": packed, f"{Q}.lora_up.scale_weight": torch.full((128,), float("nan"))}):  # fmt: skip
        with pytest.raises(ValueError, match="NaN or infinite"):
            load({**tensors, **extra}, tmp_path)


@pytest.mark.parametrize(
    ("tensors", "word"),
    [
        ({}, "nothing"),
        ({"blocks.0.self_attn.q.weight": torch.ones(2, 2), "head.modulation": torch.ones(1)}, "blocks.0.self_attn.q.weight"),
        ({"decoder.conv1.weight": torch.ones(2, 2)}, "decoder.conv1.weight"),
    ],
    ids=["empty", "an expert", "a VAE"],
)  # fmt: skip
def test_what_is_no_lora_is_refused(tensors, word, tmp_path):
    with pytest.raises(ValueError, match=f"is not a LoRA \\(it holds '?{word}"):
        read_lora(save(tensors, tmp_path / "x.safetensors"))


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_lora(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        read_lora(tmp_path / "bad.safetensors")


@pytest.mark.parametrize(
    ("config", "words"),
    [("{", "damaged"), ("[]", "damaged"), (json.dumps({"peft_type": "LOKR"}), "type LOKR")],
)
def test_pefts_configuration_must_be_readable(config, words, tmp_path):
    path = save(
        pair("base_model.model.blocks.0.self_attn.q"), tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(ValueError, match=words):
        read_lora(path)
