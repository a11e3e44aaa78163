"""Write the trained parts as the published files are: official keys, bfloat16, configuration in the header.

The experts work on latents with this family's own mean and deviation; folding them into the VAE's two
1x1x1 convolutions makes raw latents fit the official constants, so every Wan program can use the VAE.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..wan.config import TINY
from .train_experts import ROLES, WORK

WEIGHTS = Path(__file__).parent / "weights"
FILES = {
    "high_noise": "diffusion_models/wan_tiny_t2v_high_noise.safetensors",
    "low_noise": "diffusion_models/wan_tiny_t2v_low_noise.safetensors",
    "vae": "vae/wan_tiny_vae.safetensors",
    "text": "text_encoders/umt5_tiny.safetensors",
}
"""Files by role, in folders named as ComfyUI's, so that its loaders list each in the right place."""
LOG_VARIANCE = -9.0
"""Constant the encoder reports: its latents are means, the noise of training was fixed."""


def fold(state: dict[str, Tensor], mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """A VAE state dict whose raw latents have the official statistics instead of ``mean``, ``std``.

    Args:
        state: trained weights.
        mean: latent mean per channel, any shape of 16 values.
        std: latent deviation per channel.
    """
    mean, std = mean.flatten().double(), std.flatten().double()
    official_mean = torch.tensor(TINY.vae.latent_mean, dtype=torch.float64)
    scale = torch.tensor(TINY.vae.latent_std, dtype=torch.float64) / std
    channels = TINY.vae.z_dim
    state = {name: tensor.double() for name, tensor in state.items()}
    weight, bias = state["conv1.weight"].clone(), state["conv1.bias"].clone()
    weight[:channels] *= scale.view(-1, 1, 1, 1, 1)
    bias[:channels] = (bias[:channels] - mean) * scale + official_mean
    weight[channels:] = 0.0
    bias[channels:] = LOG_VARIANCE
    inverse = state["conv2.weight"] / scale.view(1, -1, 1, 1, 1)
    shift = state["conv2.weight"][:, :, 0, 0, 0] @ mean - inverse[:, :, 0, 0, 0] @ official_mean
    folded = {"conv1.weight": weight, "conv1.bias": bias, "conv2.weight": inverse}
    return state | folded | {"conv2.bias": state["conv2.bias"] + shift}


def write(path: Path, state: dict[str, Tensor], role: str, config: object) -> None:
    """Save ``state`` in bfloat16 (bytes stay bytes) with the header entries the loaders read."""
    tensors = {
        name: (tensor if tensor.dtype == torch.uint8 else tensor.to(torch.bfloat16)).contiguous()
        for name, tensor in state.items()
    }
    metadata = {"format": "pt", "wan_role": role, "wan_config": json.dumps(asdict(config))}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata=metadata)
    path.chmod(0o644)


def export(work: Path, weights: Path) -> list[Path]:
    """Write all four files from what training left in ``work``; returns their paths."""
    corpus = torch.load(work / "corpus.pt", mmap=True)
    vae = fold(torch.load(work / "vae.pt")["vae"], corpus["mean"], corpus["std"])
    text = torch.load(work / "text.pt")
    spiece = torch.frombuffer(bytearray(text["spiece"]), dtype=torch.uint8)
    paths = {role: weights / name for role, name in FILES.items()}
    write(paths["vae"], vae, "vae", TINY.vae)
    write(paths["text"], text["encoder"] | {"spiece_model": spiece}, "text", TINY.text)
    for role in ROLES:
        expert = torch.load(work / f"{role}.pt")["average"]
        write(paths[role], expert, role, TINY.transformer)
    return list(paths.values())


def main() -> int:
    """Export the trained parts to tiny/weights."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    for path in export(arguments.work, arguments.weights):
        print(f"{path.stat().st_size / 1e6:6.2f} MB  {path}")
    return 0
