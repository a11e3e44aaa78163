"""A complete system of random weights in the official formats, small enough for any test."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from wanexperts.wan.config import TINY, TextConfig, TransformerConfig, VAEConfig
from wanexperts.wan.text import UMT5Encoder
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import WanVAE

EXPERT = TransformerConfig(dim=128, ffn_dim=64, num_heads=1, num_layers=1, text_dim=32)
TEXT = TextConfig(vocab_size=64, dim=32, attn_dim=32, num_heads=2, ffn_dim=32, num_layers=1)
SMALL_VAE = VAEConfig(dim=8)


def sentencepiece_model() -> bytes:
    """A sentencepiece model in the T5 layout: pad 0, end 1, unknown 2."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red circle moves left on a white background"] * 20),
        model_writer=model,
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def random_state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Weights of a scale at which no layer dies and none explodes."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in module.state_dict().items():
        if "norm" in key or key.endswith("gamma"):
            state[key] = torch.ones(value.shape)
        else:
            fan_in = value[0].numel() if value.ndim > 1 else 16
            state[key] = torch.randn(value.shape, generator=generator) / fan_in**0.5
    return state


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
    spiece = torch.frombuffer(bytearray(sentencepiece_model()), dtype=torch.uint8)
    text = random_state(UMT5Encoder(TEXT), 4) | {"spiece_model": spiece}
    save_file(text, paths["text"])
    return paths
