"""Names of widget values in UI files, which hold them as a bare list: ours and those of ComfyUI we read."""

from __future__ import annotations

NOT_NAMED = ""
"""A value of the canvas alone, such as what happens to a seed after a run."""

_EXPERTS = ("cfg_high_noise", "cfg_low_noise")
_SWITCH = ("switch", "boundary", "switch_step")
_MORE = ("switch_value", "cfg_curve_high", "cfg_curve_low", "cfg_motion", "motion_until")

WIDGETS: dict[str, tuple[str, ...]] = {
    "WanExpertsLoader": ("model_high_noise", "model_low_noise", "allow_mismatch"),
    "WanExpertsTextEncoderLoader": ("text_encoder",),
    "WanExpertsVAELoader": ("vae",),
    "WanExpertsLora": (
        "lora_high_noise", "lora_low_noise", "strength_high_noise", "strength_low_noise", "strict",
        "allow_mismatch",
    ),
    "WanExpertsTextEncode": ("positive", "negative"),
    "WanExpertsEmptyLatent": ("width", "height", "frames", "batch_size"),
    "WanExpertsSampler": (
        "noise_seed", NOT_NAMED, "steps", *_EXPERTS, "sampler_name", "scheduler", "sigma_shift",
        *_SWITCH, *_MORE, "preset",
        "noise", "resume",
    ),
    "WanExpertsCompile": (),
    "WanExpertsPlan": ("time_a_block",),
    "WanExpertsGuider": (*_EXPERTS, "sigma_shift", *_SWITCH, *_MORE, "resume"),
    "WanExpertsNoise": ("noise_seed", NOT_NAMED, "layout"),
    "WanExpertsSchedule": (
        "scheduler", "steps", "sigma_shift", "switch", "boundary", "switch_step", "switch_value",
        "timesteps",
    ),
    "WanExpertsSolver": ("sampler_name",),
    "WanExpertsStage": ("name", "cfg", "until", "until_value", "cfg_curve"),
    "WanExpertsStagesGuider": ("sigma_shift", "resume"),
    "WanExpertsRecipe": ("recipe",),
    "WanExpertsVerify": ("file", "other_file"),
    "WanExpertsDecode": (),
    "WanExpertsDecodeToVideo": ("fps", "filename_prefix", "format", "crf"),
    # ComfyUI's own, as of 0.3.64 to 0.12.1.
    "PrimitiveInt": ("value", NOT_NAMED),
    "PrimitiveFloat": ("value",),
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "PrimitiveBoolean": ("value",),
    "RandomNoise": ("noise_seed", NOT_NAMED),
    "KSamplerSelect": ("sampler_name",),
    "SamplerCustomAdvanced": (),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "ManualSigmas": ("sigmas",),
    "EmptyHunyuanLatentVideo": ("width", "height", "length", "batch_size"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "UnetLoaderGGUF": ("unet_name",),
    "KSamplerAdvanced": (
        "add_noise", "noise_seed", NOT_NAMED, "steps", "cfg", "sampler_name", "scheduler",
        "start_at_step", "end_at_step", "return_with_leftover_noise",
    ),
    "CLIPLoader": ("clip_name", "type", "device"),
    "VAELoader": ("vae_name",),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "ModelSamplingSD3": ("shift",),
    "CLIPTextEncode": ("text",),
    "CreateVideo": ("fps",),
    "SaveVideo": ("filename_prefix", "format", "codec"),
    "SaveLatent": ("filename_prefix",),
}  # fmt: skip
"""Class -> names in the order of ``widgets_values``."""
