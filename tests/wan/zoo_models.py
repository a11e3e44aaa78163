"""Weights of other models, of other Wan models, packed in other ways, and of the right model but wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from wanexperts.tests.wan.family import EXPERT, SMALL_VAE, TEXT
from wanexperts.tests.wan.zoo_base import (
    MISPLACED,
    ONCE_KNOWN,
    TOGETHER,
    Kind,
    expert,
    layout,
    names_only,
    text,
    vae,
    write,
    write_raw,
)

Make = Callable[[Path], Path]


def changed(state: Callable[[], dict[str, Tensor]], **tensors: Tensor | None) -> Make:
    """The maker of good weights with other tensors (``__`` is a dot); None takes one out."""

    def make(folder: Path) -> Path:
        found = state()
        for name, tensor in tensors.items():
            key = name.replace("__", ".")
            found.pop(key, None)
            if tensor is not None:
                found[key] = tensor
        return write(folder / "model.safetensors", found)

    return make


def with_keys(tensors: Mapping[str, Tensor], config: object = EXPERT) -> Make:
    """The maker of an expert with more tensors."""
    return lambda folder: write(folder / "model.safetensors", {**expert(config), **tensors})


def saved(state: Callable[[], Mapping[str, Tensor]], name: str = "model.safetensors") -> Make:
    return lambda folder: write(folder / name, state())


def headed(**shapes: tuple[str, tuple[int, ...], int]) -> Make:
    """The maker of an expert's header with other entries, over a hole."""

    def make(folder: Path) -> Path:
        found: dict[str, tuple[str, tuple[int, ...], int]] = {
            key: ("F32", tuple(tensor.shape), tensor.numel() * 4)
            for key, tensor in expert().items()
        }
        found |= {name.replace("__", "."): entry for name, entry in shapes.items()}
        return write_raw(folder / "model.safetensors", layout(found))

    return make


# --- other models

SD15 = names_only(
    "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight",
    "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight",
    "first_stage_model.decoder.conv_in.weight", "first_stage_model.encoder.conv_in.weight",
)  # fmt: skip
SDXL = names_only(
    "model.diffusion_model.label_emb.0.0.weight", "model.diffusion_model.input_blocks.0.0.weight",
    "conditioner.embedders.1.model.ln_final.weight", "first_stage_model.decoder.conv_in.weight",
)  # fmt: skip
FLUX = names_only(
    "double_blocks.0.img_attn.norm.key_norm.scale", "double_blocks.0.img_attn.qkv.weight",
    "single_blocks.0.linear1.weight", "img_in.weight", "final_layer.linear.weight",
)  # fmt: skip
HUNYUAN = names_only(
    "img_in.proj.weight", "double_blocks.0.img_attn_qkv.weight",
    "txt_in.individual_token_refiner.blocks.0.norm1.weight", "final_layer.linear.weight",
)  # fmt: skip
LTX = names_only(
    "adaln_single.emb.timestep_embedder.linear_1.bias", "transformer_blocks.0.attn1.to_q.weight",
    "scale_shift_table", "patchify_proj.weight", "proj_out.weight",
)  # fmt: skip
QWEN_IMAGE = names_only(
    "img_in.weight", "txt_norm.weight", "transformer_blocks.0.attn.add_k_proj.weight",
    "time_text_embed.timestep_embedder.linear_1.weight", "proj_out.weight",
)  # fmt: skip
COSMOS = names_only("blocks.block0.blocks.0.block.attn.to_q.0.weight", "final_layer.linear.weight")
MOCHI = names_only("t5_yproj.weight", "blocks.0.attn.qkv_x.weight", "final_layer.linear.weight")
SD_VAE = names_only(
    "encoder.conv_in.weight", "encoder.down_blocks.0.resnets.0.conv1.weight",
    "decoder.conv_in.weight", "decoder.mid_block.resnets.0.norm1.weight", "quant_conv.weight",
)  # fmt: skip
FLUX_VAE = names_only("decoder.mid.block_1.norm1.weight", "encoder.conv_in.weight")
CLIP_L = names_only(
    "text_model.embeddings.token_embedding.weight", "text_model.encoder.layers.0.mlp.fc1.weight"
)
LLAMA = names_only("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight")


def _sd_ckpt(folder: Path) -> Path:
    """As Stable Diffusion 1 was published: weights and the trainer's objects in one pickle."""
    import argparse

    path = folder / "v1-5.ckpt"
    weights = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2, 2)}
    torch.save({"state_dict": weights, "callbacks": argparse.Namespace(a=1)}, path)
    return path


def _t5_xxl(names: Callable[[str], str]) -> Make:
    """The maker of a T5: one table of positions, in the first layer."""

    def make(folder: Path) -> Path:
        state = text(replace(TEXT, num_layers=3))
        for number in (1, 2):
            del state[f"blocks.{number}.pos_embedding.embedding.weight"]
        return write(folder / "t5xxl.safetensors", {names(k): v for k, v in state.items()})

    return make


def _hf(key: str) -> str:
    """The names that transformers gives, spelled here by hand."""
    if key == "spiece_model":
        return key
    block, _, rest = key.removeprefix("blocks.").partition(".")
    table = {
        "norm1": "layer.0.layer_norm", "attn.q": "layer.0.SelfAttention.q", "norm2": "layer.1.layer_norm",
        "attn.k": "layer.0.SelfAttention.k", "attn.v": "layer.0.SelfAttention.v",
        "attn.o": "layer.0.SelfAttention.o", "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
        "ffn.fc1": "layer.1.DenseReluDense.wi_1", "ffn.fc2": "layer.1.DenseReluDense.wo",
        "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    }  # fmt: skip
    if not key.startswith("blocks."):
        return {"token_embedding.weight": "shared.weight"}.get(
            key, "encoder.final_layer_norm.weight"
        )
    return f"encoder.block.{block}.{table[rest.removesuffix('.weight')]}.weight"


# --- other Wan models

IMAGE = replace(EXPERT, in_dim=36)
VARIANTS = {
    "VACE": ("is a VACE model", EXPERT, "vace_patch_embedding.weight"),
    "Wan2.1 image-to-video with CLIP": (
        "is a Wan2.1 image-to-video model",
        IMAGE,
        "img_emb.proj.0.bias",
    ),
    "camera control": ("is a camera-control model", IMAGE, "control_adapter.conv.weight"),
    "Fun-Control": ("is a Fun-Control model", replace(EXPERT, in_dim=52), "ref_conv.weight"),
    "S2V": (
        "is a speech-to-video model",
        EXPERT,
        "casual_audio_encoder.encoder.final_linear.weight",
    ),
    "Animate": ("is an Animate model", IMAGE, "face_adapter.fuser_blocks.0.k_norm.weight"),
}
VARIANT_KINDS = [
    Kind(name=name, words=words, doors=ONCE_KNOWN, host=name == "VACE",
         make=with_keys({marker: torch.zeros(1, 1, 1)}, config))
    for name, (words, config, marker) in VARIANTS.items()
]  # fmt: skip
SIZED_KINDS = [
    Kind(name="I2V-A14B", words="is an image-to-video expert", doors=ONCE_KNOWN, host=True,
         make=saved(lambda: expert(IMAGE))),
    Kind(name="TI2V-5B", words="is the TI2V-5B model", doors=ONCE_KNOWN, host=True,
         make=saved(lambda: expert(replace(EXPERT, in_dim=48, out_dim=48)))),
    Kind(name="VAE of TI2V-5B", words="48 latent channels; T2V-A14B needs the Wan2.1 VAE", part="vae",
         doors=ONCE_KNOWN, make=saved(lambda: vae(replace(SMALL_VAE, z_dim=48)))),
    Kind(name="module of VACE alone", words="is a VACE module without its model",
         make=names_only("vace_blocks.0.before_proj.weight", "vace_patch_embedding.weight")),
    Kind(name="umT5 of another width", words="gives text of width 16, the experts read 32", part="text",
         doors=TOGETHER, make=saved(lambda: text(replace(TEXT, dim=16)))),
    Kind(name="expert that reads another width", words="no text encoder fits both", doors=TOGETHER,
         make=saved(lambda: expert(replace(EXPERT, text_dim=48)))),
    Kind(name="expert of another depth", words="choose two experts of one model", doors=TOGETHER,
         make=saved(lambda: expert(replace(EXPERT, num_layers=2)))),
    Kind(name="the low-noise expert once more", words="hold the same weights under two names", doors=TOGETHER,
         make=saved(lambda: expert(seed=2))),
]  # fmt: skip

# --- packed in other ways

LAYER = "blocks.0.ffn.0"
ROWS = 64


def packed(dtype: torch.dtype, scale: Tensor | None, **extra: Tensor) -> Make:
    """The maker of an expert whose first feed-forward weight is packed."""
    tensors = {f"{LAYER}.weight": torch.zeros(ROWS, 128).to(dtype)}
    if scale is not None:
        tensors[f"{LAYER}.weight_scale"] = scale
    return with_keys({**tensors, **{f"{LAYER}.{leaf}": tensor for leaf, tensor in extra.items()}})


def note(value: object, **dtype: torch.dtype) -> Tensor:
    """A ``comfy_quant`` tensor."""
    told = value if isinstance(value, bytes) else json.dumps(value).encode()
    return torch.frombuffer(bytearray(told), dtype=torch.uint8).to(**dtype)


def _huge_note(folder: Path) -> Path:
    return headed(**{f"{LAYER}.comfy_quant".replace(".", "__"): ("U8", (1 << 31,), 1 << 31)})(
        folder
    )


FP8 = torch.float8_e4m3fn
ONE = torch.ones(())
DAMAGED_NOTES = {
    "is no JSON": "{",
    "is nested without end": '{"layers":' * 50_000,
    "has no layers": '{"format": "fp8"}',
    "names unknown layers": json.dumps({"layers": {LAYER: {"format": "nvfp4"}}}),
}
PACKED_KINDS = [
    Kind(name="NVFP4", words="quantised as NVFP4, which is not read; use the bf16", host=True,
         make=packed(torch.uint8, torch.ones(ROWS, 8).to(FP8), weight_scale_2=ONE)),
    Kind(name="GPTQ", words="quantised as GPTQ or AWQ", make=with_keys({
        f"{LAYER}.qweight": torch.zeros(16, ROWS, dtype=torch.int32), f"{LAYER}.g_idx": torch.zeros(128)})),
    Kind(name="AWQ", words="quantised as GPTQ or AWQ", make=with_keys({
        f"{LAYER}.qzeros": torch.zeros(1, 8, dtype=torch.int32)})),
    Kind(name="bitsandbytes", words="quantised as bitsandbytes", make=with_keys({
        f"{LAYER}.weight": torch.zeros(4096, 1, dtype=torch.uint8),
        f"{LAYER}.weight.absmax": torch.zeros(128),
        f"{LAYER}.weight.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)})),
    Kind(name="SVDQuant", words="quantised as SVDQuant", make=with_keys({
        f"{LAYER}.wscales": torch.zeros(2, ROWS), f"{LAYER}.smooth_factor": torch.zeros(128)})),
    Kind(name="int8 without scales", words="is int8 without a scale", make=packed(torch.int8, None), host=True),
    Kind(name="scale of every number", words="of its 64 rows is read", make=packed(FP8, torch.ones(ROWS, 128))),
    Kind(name="scale of every block", words="of its 64 rows is read", make=packed(FP8, torch.ones(ROWS, 4))),
    Kind(name="scale of no number", words="of its 64 rows is read", make=packed(FP8, torch.ones(0))),
    Kind(name="scale of integers", words="is I32, not a float", make=packed(FP8, torch.ones((), dtype=torch.int32))),
    Kind(name="scale of a plain weight", words="no quantised weight for it", make=packed(torch.bfloat16, ONE)),
    Kind(name="scale of nothing", words="no quantised weight for it",
         make=with_keys({"blocks.7.ffn.0.weight_scale": ONE})),
    Kind(name="packed convolution", words="not readable (first: patch_embedding.weight as I8)", doors=ONCE_KNOWN,
         make=with_keys({"patch_embedding.weight": torch.zeros(128, 16, 1, 2, 2).to(torch.int8),
                         "patch_embedding.weight_scale": ONE})),
    Kind(name="packed VAE", words="not readable (first: conv1.weight as I8)", part="vae", doors=ONCE_KNOWN,
         make=lambda folder: write(folder / "vae.safetensors", {**vae(),
             "conv1.weight": vae()["conv1.weight"].to(torch.int8), "conv1.weight_scale": ONE})),
    Kind(name="quantisation note is garbage", words="comfy_quant is damaged", make=packed(FP8, ONE, comfy_quant=note(b"\xff\xfe"))),
    Kind(name="quantisation note of an unknown format", words="is quantised as 'mxfp4'", make=packed(FP8, ONE, comfy_quant=note({"format": "mxfp4"}))),
    Kind(name="quantisation note without format", words="is quantised as 'None'", make=packed(FP8, ONE, comfy_quant=note([1]))),
    Kind(name="quantisation note of floats", words="comfy_quant is damaged", make=packed(FP8, ONE, comfy_quant=note({}, dtype=torch.float32))),
    Kind(name="quantisation note nested without end", words="comfy_quant is damaged", make=packed(FP8, ONE, comfy_quant=note(b"[" * 50_000))),
    Kind(name="quantisation note of 2 GB", words="comfy_quant is damaged", make=_huge_note),
    *(Kind(name=f"quantisation header {how}", words="_quantization_metadata is damaged" if "unknown" not in how else "is quantised as 'nvfp4'",
           make=lambda folder, told=told: write(folder / "model.safetensors", expert(), _quantization_metadata=told))
      for how, told in DAMAGED_NOTES.items()),
]  # fmt: skip

# --- the right model, but wrong


def _gaps(step: int) -> Make:
    """The maker of an expert with more blocks, ``step`` numbers apart."""

    def make(folder: Path) -> Path:
        state = expert()
        blocks = {
            k.removeprefix("blocks.0."): v for k, v in state.items() if k.startswith("blocks.0.")
        }
        state |= {f"blocks.{step}.{rest}": tensor.clone() for rest, tensor in blocks.items()}
        return write(folder / "model.safetensors", state)

    return make


HUGE = 1 << 40
WRONG_KINDS = [
    Kind(name="without one tensor", words="1 missing (first: head.head.bias)", doors=ONCE_KNOWN, host=True,
         make=changed(expert, head__head__bias=None)),
    Kind(name="with an unknown tensor", words="1 unknown (first: blocks.0.extra)", doors=ONCE_KNOWN,
         make=with_keys({"blocks.0.extra": ONE})),
    Kind(name="of another shape", words="head.head.bias (9,) instead of (64,)", doors=ONCE_KNOWN, host=True,
         make=changed(expert, head__head__bias=torch.zeros(9))),
    Kind(name="of another rank", words="with 1 axes, not 5", doors=ONCE_KNOWN,
         make=changed(expert, patch_embedding__weight=torch.zeros(9))),
    Kind(name="weights of integers", words="I32", doors=ONCE_KNOWN, host=True,
         make=changed(expert, head__head__weight=torch.zeros(64, 128, dtype=torch.int32))),
    Kind(name="weights of truth values", words="BOOL", doors=ONCE_KNOWN,
         make=changed(expert, head__head__bias=torch.zeros(64, dtype=torch.bool))),
    Kind(name="complex weights", words="C64", doors=ONCE_KNOWN,
         make=changed(expert, head__head__bias=torch.zeros(64, dtype=torch.complex64))),
    Kind(name="block 0 and block 2", words="lacks some of its blocks", doors=ONCE_KNOWN, make=_gaps(2)),
    Kind(name="block 0 and block 1,000,000,000", words="lacks some of its blocks", doors=ONCE_KNOWN, make=_gaps(10**9)),
    Kind(name="no blocks", words="blocks", doors=ONCE_KNOWN,
         make=saved(lambda: {k: v for k, v in expert().items() if not k.startswith("blocks.")})),
    Kind(name="width of nothing", words="head.modulation", doors=ONCE_KNOWN, make=headed(head__modulation=("F32", (1, 2, 0), 0))),
    Kind(name="width of no model, for nothing", words="head.modulation", doors=ONCE_KNOWN,
         make=headed(head__modulation=("F32", (1, 0, HUGE), 0))),
    Kind(name="feed-forward width of no model, for nothing", words="blocks.0.ffn.0.weight", doors=ONCE_KNOWN,
         make=headed(blocks__0__ffn__0__weight=("F32", (HUGE * 128, 0), 0))),
    Kind(name="width of no model", words="head.modulation", doors=ONCE_KNOWN,
         make=headed(head__modulation=("F8_E4M3", (1, 2, 128 << 23), 2 * (128 << 23)))),
    Kind(name="width that heads do not divide", words="not a multiple of 128", doors=ONCE_KNOWN,
         make=headed(head__modulation=("F32", (1, 2, 130), 1040))),
    Kind(name="VAE without one tensor", words="1 missing (first: conv1.bias)", part="vae", doors=ONCE_KNOWN,
         make=changed(vae, conv1__bias=None)),
    Kind(name="VAE decoder alone", words="no tensor", part="vae", doors=ONCE_KNOWN,
         make=saved(lambda: {k: v for k, v in vae().items() if k.startswith("decoder.")})),
    Kind(name="umT5 without one tensor", words="1 missing (first: norm.weight)", part="text", doors=ONCE_KNOWN,
         make=changed(text, norm__weight=None)),
    Kind(name="umT5 of a vocabulary of 2**40", words="token_embedding.weight", part="text", doors=ONCE_KNOWN,
         make=lambda folder: write_raw(folder / "model.safetensors", layout({
             **{k: ("F32", tuple(t.shape), t.numel() * 4) for k, t in text().items() if k != "spiece_model"},
             "token_embedding.weight": ("F32", (HUGE, 0), 0)}))),
]  # fmt: skip

OTHER = {
    "Stable Diffusion 1.5": (SD15, "is a Stable Diffusion model, not", "high"),
    "SDXL": (SDXL, "is a Stable Diffusion model, not", "high"),
    "Flux": (FLUX, "is a Flux model, not", "high"),
    "HunyuanVideo": (HUNYUAN, "is a HunyuanVideo model, not", "high"),
    "LTX-Video": (LTX, "is an LTX-Video model, not", "high"),
    "Qwen-Image": (QWEN_IMAGE, "is a Qwen-Image model, not", "high"),
    "Cosmos": (COSMOS, "is a Cosmos model, not", "high"),
    "Mochi": (MOCHI, "is a Mochi model, not", "high"),
    "VAE of Stable Diffusion": (SD_VAE, "is the VAE of an image model, not", "vae"),
    "VAE of Flux": (FLUX_VAE, "is the VAE of an image model, not", "vae"),
    "CLIP text encoder": (CLIP_L, "is a CLIP text encoder, not", "text"),
    "language model": (LLAMA, "is a language model, not", "text"),
}
UNKNOWN = names_only("conv_1.weight", "strange\nname")
OTHER_KINDS = [
    Kind(name=name, make=make, words=words, part=part, host=name in ("Stable Diffusion 1.5", "Flux"))
    for name, (make, words, part) in OTHER.items()
] + [
    Kind(name="model that nobody knows", make=UNKNOWN, words="(it holds 'conv_1.weight', ...)"),
    Kind(name=".ckpt of Stable Diffusion", make=_sd_ckpt, words="holds code or objects (argparse.Namespace)"),
    Kind(name="T5-XXL in the official names", make=_t5_xxl(str), words="T5", part="text", doors=ONCE_KNOWN),
    Kind(name="T5-XXL in transformers' names", make=_t5_xxl(_hf), words="not umT5", part="text", doors=ONCE_KNOWN),
    Kind(name="VAE as an expert", make=saved(vae), words="is a VAE, not an expert", doors=MISPLACED, host=True),
    Kind(name="VAE as a text encoder", make=saved(vae), words="is a VAE, not an umT5", part="text", doors=MISPLACED),
    Kind(name="text encoder as a VAE", make=saved(text), words="is an umT5 text encoder, not a VAE", part="vae", doors=MISPLACED),
    Kind(name="expert as a VAE", make=saved(expert), words="is an expert (diffusion model), not a VAE", part="vae", doors=MISPLACED),
]  # fmt: skip

KINDS = [*OTHER_KINDS, *VARIANT_KINDS, *SIZED_KINDS, *PACKED_KINDS, *WRONG_KINDS]
