"""LoRA files for the random experts, spelled by hand, and the weights they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.transformer import WanTransformer

FOLDER = "experts"
HIGH, LOW = f"{FOLDER}/pair_high_noise.safetensors", f"{FOLDER}/pair_low_noise.safetensors"
BOTH, COMBINED = f"{FOLDER}/style.safetensors", f"{FOLDER}/combined.safetensors"
WAN21, LONELY = f"{FOLDER}/wan2.1_style.safetensors", f"{FOLDER}/lonely_high_noise.safetensors"
HALF, FOREIGN = f"{FOLDER}/deeper.safetensors", f"{FOLDER}/unet.safetensors"
BROKEN = f"{FOLDER}/broken.safetensors"
RANK, ALPHA = 4, 3.0
LAYERS = {
    "blocks.0.self_attn.v": "blocks.0.attn1.to_v",
    "blocks.0.ffn.2": "blocks.0.ffn.net.2",
    "head.head": "proj_out",
}
"""Changed matrices, and their names in diffusers."""
MODULATIONS = {
    "blocks.0.modulation": "blocks.0.scale_shift_table",
    "head.modulation": "scale_shift_table",
}

Change = dict[str, Tensor]


def _random(
    config: TransformerConfig, seed: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], Change]:
    """``up, down`` of each changed matrix, and whole changes of the rest."""
    shapes = WanTransformer(config, device=torch.device("meta")).state_dict()
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    factors = {
        name: (draw(shapes[f"{name}.weight"].shape[0], RANK) / 5,
               draw(RANK, shapes[f"{name}.weight"].shape[1]) / 5)
        for name in LAYERS
    }  # fmt: skip
    whole = {name: draw(*shapes[name].shape) / 2 for name in MODULATIONS}
    whole["blocks.0.ffn.2.bias"] = draw(*shapes["blocks.0.ffn.2.bias"].shape)
    return factors, whole


def change(config: TransformerConfig, seed: int) -> Change:
    """What the LoRA of a seed adds to the weights at strength 1."""
    factors, whole = _random(config, seed)
    added = {f"{name}.weight": ALPHA / RANK * up @ down for name, (up, down) in factors.items()}
    return {**added, **whole}


def comfy_keys(config: TransformerConfig, seed: int) -> Change:
    """The LoRA of a seed in ComfyUI's dialect."""
    factors, whole = _random(config, seed)
    state = {}
    for name, (up, down) in factors.items():
        state[f"diffusion_model.{name}.lora_up.weight"] = up
        state[f"diffusion_model.{name}.lora_down.weight"] = down
        state[f"diffusion_model.{name}.alpha"] = torch.tensor(ALPHA)
    for name, value in whole.items():
        leaf = "diff_b" if name.endswith(".bias") else "diff"
        state[f"diffusion_model.{name.removesuffix('.bias')}.{leaf}"] = value
    return state


def diffusers_keys(config: TransformerConfig, seed: int, prefix: str) -> Change:
    """The low-rank part of the LoRA of a seed in diffusers' dialect, its scale folded in."""
    state = {}
    for name, (up, down) in _random(config, seed)[0].items():
        state[f"{prefix}.{LAYERS[name]}.lora_B.weight"] = up * (ALPHA / RANK)
        state[f"{prefix}.{LAYERS[name]}.lora_A.weight"] = down
    return state


def write_all(loras: Path, config: TransformerConfig) -> None:
    """Every file, for experts of ``config``: seed 1 changes high noise, seed 2 low noise.

    Where they are there already they stay: a server that several tests share may hold them open.
    """
    if (loras / BROKEN).exists():  # the last to be written
        return
    (loras / FOLDER).mkdir(parents=True, exist_ok=True)
    high, low = comfy_keys(config, 1), comfy_keys(config, 2)
    deeper = {key.replace("blocks.0.", "blocks.7."): value for key, value in high.items()}
    unet = "lora_unet_down_blocks_0_attentions_0_proj_in"
    states: Mapping[str, Change] = {
        HIGH: high,
        LOW: low,
        BOTH: high,
        LONELY: high,
        WAN21: low,
        COMBINED: {
            **diffusers_keys(config, 1, "transformer"),
            **diffusers_keys(config, 2, "transformer_2"),
        },
        HALF: deeper,
        FOREIGN: {
            f"{unet}.lora_up.weight": torch.zeros(8, 4),
            f"{unet}.lora_down.weight": torch.zeros(4, 8),
        },
    }
    for name, state in states.items():
        save_file({key: value.contiguous() for key, value in state.items()}, loras / name)
    (loras / BROKEN).write_bytes((loras / HIGH).read_bytes()[:500])
