"""Which expert a LoRA's name speaks of, which release, and which file is its other half."""

from __future__ import annotations

from pathlib import Path

import pytest
from wanexperts.wan.lora import exact_partner, find_partner, lora_role, spoken_role
from wanexperts.wan.lora.naming import lora_base

HIGH, LOW = "high_noise", "low_noise"
NAMES = {
    "wan2.2_t2v_high_noise_lora.safetensors": HIGH,
    "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step_1217.safetensors": LOW,
    "Wan22_A14B_T2V_HIGH_Lightning_4steps_lora_250928_rank128_fp16.safetensors": HIGH,
    "Wan2.2_I2V_A14B_HIGH_lightx2v_MoE_distill_lora_rank_64_bf16.safetensors": HIGH,
    "high_noise_model.safetensors": HIGH,
    "LowNoise-myStyle.safetensors": LOW,
    "myStyleHighNoise.safetensors": HIGH,
    "myStylehighnoise_v2.safetensors": None,
    "style_highnoise_v2.safetensors": HIGH,
    "style-low.safetensors": LOW,
    "style_low_000002500.safetensors": LOW,
    "style_high_e20.safetensors": HIGH,
    "style_HIGH_v3.safetensors": HIGH,
    "i2vHigh_v20.safetensors": HIGH,
    "NSFW-22-H-e8.safetensors": HIGH,
    "style_L.safetensors": LOW,
    "style_HN.safetensors": HIGH,
    "HIGH_mystyle.safetensors": HIGH,
    "high_heels_LOW.safetensors": LOW,
    "low_light_high_noise.safetensors": HIGH,
    "high_heels.safetensors": None,
    "low_light.safetensors": None,
    "low_res.safetensors": None,
    "lowres.safetensors": None,
    "high_quality_v2.safetensors": None,
    "High_Quality.safetensors": None,
    "LOW_LIGHT.safetensors": None,
    "lowpoly.safetensors": None,
    "low-poly.safetensors": None,
    "highland_cow.safetensors": None,
    "slow_motion.safetensors": None,
    "yellow.safetensors": None,
    "high_and_low.safetensors": None,
    "high_low.safetensors": None,
    "high_noise_low_noise.safetensors": None,
    "l_system_fractals.safetensors": None,
    "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32.safetensors": None,
    "style.safetensors": None,
    "wan22_t2v_HIGH_Q5_K_M.gguf": HIGH,
    "Instagirlv2.0_hinoise.safetensors": HIGH,
    "Instagirlv2.0_lonoise.safetensors": LOW,
    "style_HIGH-4steps.safetensors": HIGH,
    "hi_res.safetensors": None,
}


@pytest.mark.parametrize("name", NAMES)
def test_role_of_a_name(name):
    assert lora_role(Path("loras", name), {}) == NAMES[name]


@pytest.mark.parametrize(
    ("folder", "name", "role"),
    [
        ("high_noise_model", "distill_model.safetensors", HIGH),
        ("low_noise", "style.safetensors", LOW),
        ("High", "style.safetensors", HIGH),
        ("low_noise", "style_high.safetensors", HIGH),
        ("low_poly_pack", "style.safetensors", None),
        ("wan2.2", "style.safetensors", None),
    ],
)
def test_role_of_a_folder(folder, name, role):
    assert lora_role(Path("loras", folder, name), {}) == role


@pytest.mark.parametrize(
    ("metadata", "role"),
    [
        ({"wan_role": HIGH}, HIGH),
        ({"wan_role": "other"}, LOW),
        ({"modelspec.timestep_range": "875,1000"}, HIGH),
        ({"modelspec.timestep_range": "900, 1000"}, HIGH),
        ({"modelspec.timestep_range": "0,875"}, LOW),
        ({"modelspec.timestep_range": "0,900"}, LOW),
        ({"modelspec.timestep_range": "0,1000"}, LOW),
        ({"modelspec.timestep_range": "all"}, LOW),
        ({"modelspec.timestep_range": "900,1000", "wan_role": LOW}, LOW),
        ({"ss_sd_model_name": "wan2.2_t2v_high_noise_14B_fp16.safetensors"}, LOW),
    ],
)
def test_metadata_before_the_name(metadata, role):
    """The file's own name says low; only what is more certain overrules it."""
    assert lora_role(Path("style_low.safetensors"), metadata) == role


@pytest.mark.parametrize(
    ("metadata", "role"),
    [
        ({"ss_sd_model_name": "wan2.2_t2v_high_noise_14B_fp16.safetensors"}, HIGH),
        ({"modelspec.title": "my style low noise"}, LOW),
        ({"ss_output_name": "style_H"}, HIGH),
        ({"ss_output_name": "low_light"}, None),
        ({}, None),
    ],
)
def test_names_in_metadata(metadata, role):
    assert lora_role(Path("style.safetensors"), metadata) == role


@pytest.mark.parametrize(
    ("name", "metadata", "base"),
    [
        ("Wan21_T2V_14B_lightx2v.safetensors", {}, "Wan2.1"),
        ("wan2.2_style.safetensors", {}, "Wan2.2"),
        ("style.safetensors", {"ss_sd_model_name": "wan2.1_t2v_14B_bf16.safetensors"}, "Wan2.1"),
        ("style.safetensors", {"ss_base_model_version": "wan_2.2_14b"}, "Wan2.2"),
        ("style.safetensors", {"modelspec.architecture": "wan2.1"}, None),
        ("style.safetensors", {}, None),
    ],
)
def test_release(name, metadata, base):
    assert lora_base(Path("loras", name), metadata) == base


SHELF = [
    "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1/high_noise_model.safetensors",
    "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1/low_noise_model.safetensors",
    "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/high_noise_model.safetensors",
    "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1.1/low_noise_model.safetensors",
    "Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16.safetensors",
    "Wan2.2-Lightning_T2V-A14B-4steps-lora_LOW_fp16.safetensors",
    "Wan2.2-Lightning_I2V-A14B-4steps-lora_HIGH_fp16.safetensors",
    "Wan22_A14B_T2V_HIGH_Lightning_4steps_lora_250928_rank128_fp16.safetensors",
    "Wan22_A14B_T2V_LOW_Lightning_4steps_lora_250928_rank64_fp16.safetensors",
    "wan2.2_t2v_A14b_high_noise_lora_rank64_lightx2v_4step_1217.safetensors",
    "wan2.2_t2v_A14b_low_noise_lora_rank64_lightx2v_4step_1217.safetensors",
    "wan2.2_i2v_A14b_low_noise_lora_rank64_lightx2v_4step_1022.safetensors",
    "style-H-e8.safetensors",
    "style-L-e8.safetensors",
    "knit_high_noise_000002500.safetensors",
    "knit_low_noise_000001750.safetensors",
    "high/paper.safetensors",
    "low/paper.safetensors",
    "FooHighNoise.safetensors",
    "foolownoise.safetensors",
    "alone_high.safetensors",
    "solo_high_v1.safetensors",
    "solo_low_v2.safetensors",
    "tie_high_rank128.safetensors",
    "tie_low_rank16.safetensors",
    "tie_low_rank32.safetensors",
    "subject.safetensors",
    "high_heels.safetensors",
]
PAIRS = [
    (SHELF[0], SHELF[1]),
    (SHELF[2], SHELF[3]),
    (SHELF[4], SHELF[5]),
    (SHELF[7], SHELF[8]),
    (SHELF[9], SHELF[10]),
    (SHELF[12], SHELF[13]),
    (SHELF[14], SHELF[15]),
    (SHELF[16], SHELF[17]),
    (SHELF[18], SHELF[19]),
]
ALONE = [SHELF[6], SHELF[11], *SHELF[20:]]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_partners_find_each_other(one, other):
    shelf = [Path(name) for name in SHELF]
    assert find_partner(Path(one), shelf) == Path(other)
    assert find_partner(Path(other), shelf) == Path(one)


@pytest.mark.parametrize("name", [name for name in ALONE if not name.startswith("tie_low")])
def test_no_partner_rather_than_a_wrong_one(name):
    """Another version, another variant, two that fit equally, or nothing of the kind."""
    assert find_partner(Path(name), [Path(other) for other in SHELF]) is None


STRANGERS = [
    ("john_portrait_style_v1_high.safetensors", "mary_portrait_style_v1_low.safetensors"),
    ("woman_red_dress_high.safetensors", "woman_blue_dress_low.safetensors"),
    ("aliceA_high.safetensors", "aliceB_low.safetensors"),
    ("aliceA.safetensors", "aliceB.safetensors"),
    ("a/high_noise_model.safetensors", "b/low_noise_model.safetensors"),
    ("high_heels.safetensors", "low_heels.safetensors"),
    ("low_poly_HIGH.safetensors", "high_poly_HIGH.safetensors"),
]


@pytest.mark.parametrize(("one", "other"), STRANGERS)
def test_another_subject_is_no_partner(one, other):
    assert find_partner(Path(one), [Path(other)]) is None
    assert find_partner(Path(other), [Path(one)]) is None


EXACT = [
    (
        "wan22-mouthfull-140epoc-high-k3nk.safetensors",
        "wan22-mouthfull-140epoc-low-k3nk.safetensors",
    ),
    ("Instagirlv2.0_hinoise.safetensors", "Instagirlv2.0_lonoise.safetensors"),
    ("Instagirlv2.0_hinoise.safetensors", "Instagirlv2.0_lownoise.safetensors"),
    ("HIGH_style.safetensors", "style_LOW.safetensors"),
]
NEAR = [
    ("style_high_rank128_fp16.safetensors", "style_low_rank64_bf16.safetensors"),
    ("style_140epoc_high.safetensors", "style_90epoc_low.safetensors"),
    ("style_high_20250928.safetensors", "style_low_20251001.safetensors"),
    ("style_high_s2000.safetensors", "style_low_s1500.safetensors"),
    ("high/style_r64.safetensors", "low/style_r32.safetensors"),
]


@pytest.mark.parametrize(("one", "other"), EXACT + NEAR)
def test_exact_and_near_partners(one, other):
    for mine, theirs, role in ((Path(one), Path(other), HIGH), (Path(other), Path(one), LOW)):
        assert find_partner(mine, [mine, theirs]) == theirs
        assert exact_partner(mine, [mine, theirs]) == (theirs if (one, other) in EXACT else None)
        assert spoken_role(mine) == role


def test_the_same_spelling_comes_first():
    shelf = [Path(f"a_{word}.safetensors") for word in ("hinoise", "lonoise", "lownoise")]
    assert find_partner(shelf[0], shelf) == shelf[1]
    twice = [shelf[0], Path("a_low.safetensors"), shelf[2]]
    assert find_partner(shelf[0], twice) is None


def test_no_candidates_no_partner():
    assert find_partner(Path("style_high.safetensors"), []) is None
    assert find_partner(Path("style_high.safetensors"), [Path("style_high.safetensors")]) is None
