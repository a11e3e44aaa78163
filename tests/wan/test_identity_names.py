"""What names, folders and headers say of an expert."""

from __future__ import annotations

import pytest
from wanexperts.tests.wan.test_identity import headers
from wanexperts.wan.checkpoint import Identity, identify
from wanexperts.wan.keys.roles import is_distilled

HIGH, LOW = "high_noise", "low_noise"


@pytest.mark.parametrize(
    ("path", "role", "source", "release", "distilled"),
    [
        # Comfy-Org
        ("wan2.2_t2v_high_noise_14B_fp16.safetensors", HIGH, "name", "Wan2.2", False),
        ("wan2.2_t2v_low_noise_14B_fp16.safetensors", LOW, "name", "Wan2.2", False),
        ("wan2.2_t2v_high_noise_14B_fp8_scaled.safetensors", HIGH, "name", "Wan2.2", False),
        ("wan2.2_t2v_low_noise_14B_fp8_scaled.safetensors", LOW, "name", "Wan2.2", False),
        ("wan2.1_t2v_14B_fp16.safetensors", None, "", "Wan2.1", False),
        # Kijai
        (
            "T2V/Wan2_2-T2V-A14B_HIGH_fp8_e4m3fn_scaled_KJ.safetensors",
            HIGH,
            "name",
            "Wan2.2",
            False,
        ),
        ("T2V/Wan2_2-T2V-A14B-LOW_fp8_e4m3fn_scaled_KJ.safetensors", LOW, "name", "Wan2.2", False),
        ("Wan2_1-T2V-14B_fp8_e4m3fn.safetensors", None, "", "Wan2.1", False),
        # GGUF repositories
        ("HighNoise/Wan2.2-T2V-A14B-HighNoise-Q4_K_M.gguf", HIGH, "name", "Wan2.2", False),
        ("LowNoise/Wan2.2-T2V-A14B-LowNoise-Q8_0.gguf", LOW, "name", "Wan2.2", False),
        ("wan2.2_t2v_high_noise_14B_Q6_K.gguf", HIGH, "name", "Wan2.2", False),
        ("wan2.1-t2v-14b-Q4_K_M.gguf", None, "", "Wan2.1", False),
        # LightX2V and other few-step models
        ("high_noise_model/distill_model.safetensors", HIGH, "folder", "Wan2.2", True),
        ("low_noise_model/distill_model.safetensors", LOW, "folder", "Wan2.2", True),
        ("wan2.2_t2v_A14b_low_noise_lightx2v_4step_1217.safetensors", LOW, "name", "Wan2.2", True),
        ("Wan22_A14B_T2V_HIGH_Lightning_4steps_250928.safetensors", HIGH, "name", "Wan2.2", True),
        ("Wan2_1-T2V-14B_CausVid_fp16.safetensors", None, "", "Wan2.1", True),
        # one file of an official folder
        ("high_noise_model/diffusion_pytorch_model.safetensors", HIGH, "folder", "Wan2.2", False),
        # a number or a version after the word
        ("Wan2_2-T2V-A14B_LOW_4steps.safetensors", LOW, "name", "Wan2.2", True),
        ("Wan2_2-T2V-A14B-HIGH-4steps-Q8_0.gguf", HIGH, "name", "Wan2.2", True),
        ("wan2.2_high_4step_fp8.safetensors", HIGH, "name", "Wan2.2", True),
        ("wan2.2_high_lighting_v2.0.safetensors", HIGH, "name", "Wan2.2", False),
        ("wan22_t2v_HIGH_Q5_K_M.gguf", HIGH, "name", "Wan2.2", False),
        ("wan22_t2v_LOW_rank_64.safetensors", LOW, "name", "Wan2.2", False),
        ("wan22_T2VHigh14B.safetensors", HIGH, "name", "Wan2.2", False),
        ("wan22_hinoise.safetensors", HIGH, "name", "Wan2.2", False),
        ("wan22_lonoise_fp8.safetensors", LOW, "name", "Wan2.2", False),
        # any other folder that names an expert
        ("HighNoise/model.safetensors", HIGH, "folder", "Wan2.2", False),
        ("high/model.safetensors", HIGH, "folder", "Wan2.2", False),
        ("low_noise/diffusion_pytorch_model.safetensors", LOW, "folder", "Wan2.2", False),
        ("low/wan2.2_t2v_high_noise.safetensors", HIGH, "name", "Wan2.2", False),
        ("low vram/model.safetensors", None, "", None, False),
        ("LOW_VRAM/model.safetensors", None, "", None, False),
        ("high fantasy/model.safetensors", None, "", None, False),
        ("low_rank/model.safetensors", None, "", None, False),
        # names that speak of something else
        ("wan2.2_t2v_low_cfg.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_t2v_LOW_STEPS.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_low_lighting.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_hi_res.safetensors", None, "", "Wan2.2", False),
        ("low_vram/wan2.2_t2v_14B.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_t2v_14B_low_vram.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_t2v_14B_high_quality.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_t2v_low_steps.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_t2v_HighRes.safetensors", None, "", "Wan2.2", False),
        ("wan2.2_t2v_low_noise_14B_high_quality.safetensors", LOW, "name", "Wan2.2", False),
        ("high_and_low.safetensors", None, "", None, False),
        ("highland.safetensors", None, "", None, False),
        ("slow_yellow_shallow.safetensors", None, "", None, False),
        ("transformer/diffusion_pytorch_model.safetensors", None, "", None, False),
        ("wan2.1_to_wan2.2.safetensors", None, "", None, False),
        ("expert.safetensors", None, "", None, False),
    ],
)
def test_names(path, role, source, release, distilled):
    known = Identity(role=role, role_source=source, release=release, distilled=distilled)
    assert identify(headers(path)) == known


@pytest.mark.parametrize(
    ("name", "distilled"),
    [
        ("a_4steps", True), ("a-4-step", True), ("a_8_steps", True), ("4steps_a", True),
        ("a_StepDistill", True), ("a_lightx2v", True), ("CausVid-v2", True), ("a_dmd2", True),
        ("a_distilled", True), ("Wan2.2Lightning", True),
        ("a_24steps", False), ("a_14_steps", False), ("my_dmdx", False), ("fp8_steps2000", False),
        ("a_4stepsister", False), ("blightning", False), ("undistilledx", False),
    ],
)  # fmt: skip
def test_few_steps_by_name(name, distilled):
    assert is_distilled(f"{name}.safetensors") is distilled


def test_a_header_comes_before_a_name(tmp_path):
    told = {"wan_role": LOW, "wan_release": "Wan2.1"}
    known = identify(headers("wan2.2_high_noise.safetensors", metadata=told))
    assert (known.role, known.role_source, known.release) == (LOW, "header", "Wan2.1")
    nonsense = identify(headers("wan2.2_high_noise.safetensors", metadata={"wan_role": "both"}))
    assert (nonsense.role, nonsense.role_source) == (HIGH, "name")


@pytest.mark.parametrize(
    ("folder", "role"),
    [
        ("high_noise_model", HIGH),
        ("low_noise_model", LOW),
        ("wan2.2_high_noise", HIGH),
        ("Wan", None),
    ],
)
def test_folders(tmp_path, folder, role):
    (tmp_path / folder).mkdir()
    known = identify(headers(tmp_path / folder))
    assert known.role == role
    official = folder.endswith("_model")
    assert known.role_source == ("folder" if official else "name" if role else "")
