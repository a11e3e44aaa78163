"""Random weights in the official formats, written where a server's loaders list them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from wanexperts.tests.helpers import random_state, sentencepiece_model
from wanexperts.wan.config import TextConfig, TransformerConfig, VAEConfig
from wanexperts.wan.text import UMT5Encoder, hf_key
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import WanVAE

EXPERT = TransformerConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=2, text_dim=64)
TEXT = TextConfig(vocab_size=64, dim=64, attn_dim=64, num_heads=2, ffn_dim=64, num_layers=1)
SMALL_VAE = VAEConfig(dim=8)
# What ComfyUI's own UNETLoader can load: text width 4096, head width 128.
CORE_EXPERT = TransformerConfig(dim=128, ffn_dim=128, num_heads=1, num_layers=1)
CORE_TEXT = TextConfig(vocab_size=64, dim=4096, attn_dim=64, num_heads=2, ffn_dim=64, num_layers=1)

IMAGE_EXPERT = replace(CORE_EXPERT, in_dim=36)

DIFFUSION_MODELS, TEXT_ENCODERS, VAE = "diffusion_models", "text_encoders", "vae"
LORAS, LORA = "loras", "random_lora.safetensors"
LORA_LAYERS = ("blocks.0.self_attn.v", "blocks.1.ffn.0")
MODULATION_LORA = "modulation_lora.safetensors"
MODULATIONS = ("blocks.0.modulation", "head.modulation")
IMAGE_HIGH, IMAGE_LOW = "image_high_noise.safetensors", "image_low_noise.safetensors"
HF_TEXT_FILE = "hf_umt5.safetensors"
HIGH, LOW = "random_high_noise.safetensors", "random_low_noise.safetensors"
FP32_HIGH = "fp32_high_noise.safetensors"
"""As ``HIGH`` but of other weights, stored wide: what is patched in place is not rounded."""
CORE_HIGH, CORE_LOW = "core_high_noise.safetensors", "core_low_noise.safetensors"
TEXT_FILE, CORE_TEXT_FILE = "random_umt5.safetensors", "wide_umt5.safetensors"
VAE_FILE = "random_vae.safetensors"
OFFICIAL_FOLDER = "Wan2.2-T2V-A14B"
HOLED, HOLED_VAE = "holed_low_noise.safetensors", "holed_vae.safetensors"
BARE_TEXT_FILE = "bare_umt5.safetensors"
TRUNCATED, FOREIGN, TWIN = "truncated.safetensors", "foreign.safetensors", "twin.safetensors"


def _save(state: Mapping[str, Tensor], path: Path, role: str, dtype: torch.dtype) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    save_file(stored, path, metadata={"format": "pt", "wan_role": role})


def write_shards(folder: Path, state: Mapping[str, Tensor]) -> None:
    """The official layout of one expert: two shards and their index."""
    folder.mkdir(parents=True)
    keys = sorted(state)
    weight_map = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({key: state[key] for key in part}, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_lora(path: Path) -> None:
    """A LoRA of rank 4 on two layers of the random experts, with ComfyUI's keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    model, state = WanTransformer(EXPERT), {}
    generator = torch.Generator().manual_seed(9)
    for name in LORA_LAYERS:
        rows, columns = model.get_submodule(name).weight.shape
        for side, shape in (("down", (4, columns)), ("up", (rows, 4))):
            key = f"diffusion_model.{name}.lora_{side}.weight"
            state[key] = torch.randn(shape, generator=generator) * 0.1
    save_file(state, path)


def write_modulation_lora(path: Path) -> None:
    """Full differences of two ``modulation`` parameters and one bias, with ComfyUI's keys."""
    model, generator = WanTransformer(EXPERT), torch.Generator().manual_seed(10)
    state = {}
    for name in (*MODULATIONS, "blocks.1.ffn.0.bias"):
        leaf = "diff_b" if name.endswith(".bias") else "diff"
        shape = model.get_parameter(name).shape
        key = f"diffusion_model.{name.removesuffix('.bias')}.{leaf}"
        state[key] = torch.randn(shape, generator=generator)
    save_file(state, path)


def write_wide_vae(folder: Path) -> str:
    """A VAE of the published width, 250 MB, in ``folder``; returns its name."""
    name = "random_vae_96.safetensors"
    _save(random_state(WanVAE(VAEConfig()), 4), folder / name, "vae", torch.bfloat16)
    return name


def write_all(models: Path) -> None:
    """Two experts, a pair and a LoRA for core loaders, two text encoders, a VAE and the bad files."""
    experts, texts = models / DIFFUSION_MODELS, models / TEXT_ENCODERS
    bf16, fp32 = torch.bfloat16, torch.float32
    for seed, (name, role) in enumerate([(HIGH, "high_noise"), (LOW, "low_noise")]):
        _save(random_state(WanTransformer(EXPERT), seed), experts / name, role, bf16)
        state = load_file(experts / name)
        write_shards(experts / OFFICIAL_FOLDER / f"{role}_model", state)
    _save(random_state(WanTransformer(EXPERT), 5), experts / FP32_HIGH, "high_noise", fp32)
    for seed, (name, role) in enumerate([(CORE_HIGH, "high_noise"), (CORE_LOW, "low_noise")]):
        _save(random_state(WanTransformer(CORE_EXPERT), seed), experts / name, role, fp32)
    for seed, (name, role) in enumerate([(IMAGE_HIGH, "high_noise"), (IMAGE_LOW, "low_noise")]):
        _save(random_state(WanTransformer(IMAGE_EXPERT), seed), experts / name, role, fp32)
    spiece = torch.frombuffer(bytearray(sentencepiece_model(64)), dtype=torch.uint8)
    for name, config in ((TEXT_FILE, TEXT), (CORE_TEXT_FILE, CORE_TEXT)):
        state = random_state(UMT5Encoder(config), 3)
        _save({**state, "spiece_model": spiece}, texts / name, "text_encoder", bf16)
    _save(random_state(UMT5Encoder(TEXT), 3), texts / BARE_TEXT_FILE, "text_encoder", bf16)
    _save(random_state(WanVAE(SMALL_VAE), 4), models / VAE / VAE_FILE, "vae", bf16)
    holed = {k: v for k, v in load_file(models / VAE / VAE_FILE).items() if k != "conv1.bias"}
    _save(holed, models / VAE / HOLED_VAE, "vae", bf16)
    holed = {k: v for k, v in load_file(experts / LOW).items() if k != "head.head.bias"}
    _save(holed, experts / HOLED, "low_noise", bf16)
    same = {hf_key(k) or k: v for k, v in random_state(UMT5Encoder(TEXT), 3).items()}
    _save(same, texts / HF_TEXT_FILE, "text_encoder", bf16)
    write_lora(models / LORAS / LORA)
    write_modulation_lora(models / LORAS / MODULATION_LORA)
    whole = (experts / HIGH).read_bytes()
    (experts / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    (experts / TWIN).write_bytes(whole)
    save_file({"conv.weight": torch.zeros(2, 2)}, experts / FOREIGN)
