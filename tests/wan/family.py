"""A complete system of random weights in the official formats, small enough for any test."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from wanexperts.tests.helpers import random_state, sentencepiece_model
from wanexperts.wan.config import TINY, TextConfig, TransformerConfig, VAEConfig
from wanexperts.wan.text import UMT5Encoder
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import WanVAE

EXPERT = TransformerConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, text_dim=32)
TEXT = TextConfig(vocab_size=64, dim=32, attn_dim=32, num_heads=2, ffn_dim=32, num_layers=1)
SMALL_VAE = VAEConfig(dim=8)


def write_expert(path: Path, role: str, seed: int) -> Path:
    """One random expert; its header names its role and the family's sampling defaults."""
    sampling = {"steps": 3, "num_frames": 5, "height": 32, "width": 48, "fps": 8, "unknown": 1}
    metadata = {
        "wan_role": role,
        "wan_config": json.dumps({"sampling": asdict(TINY.sampling) | sampling}),
    }
    save_file(random_state(WanTransformer(EXPERT), seed), path, metadata=metadata)
    return path


def write_family(folder: Path) -> dict[str, Path]:
    """All four files; paths by the names of ``Pipeline.load``'s arguments."""
    paths = {part: folder / f"{part}.safetensors" for part in ("high", "low", "vae", "text")}
    write_expert(paths["high"], "high_noise", 1)
    write_expert(paths["low"], "low_noise", 2)
    save_file(random_state(WanVAE(SMALL_VAE), 3), paths["vae"])
    spiece = torch.frombuffer(bytearray(sentencepiece_model(60)), dtype=torch.uint8)
    text = random_state(UMT5Encoder(TEXT), 4) | {"spiece_model": spiece}
    save_file(text, paths["text"])
    return paths
