"""The files of a family as checked headers, and as MODEL, CLIP and VAE."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...wan.checkpoint import (
    SPIECE_KEY,
    Checkpoint,
    check_keys,
    check_pair,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    find_tokenizer,
    open_checkpoint,
)
from ...wan.pipeline import family_defaults
from ...wan.text import UMT5Encoder
from ...wan.transformer import WanTransformer
from ...wan.vae import WanVAE
from . import files
from .model import build_model
from .text import build_clip
from .vae import HostVAE

META = torch.device("meta")


def open_experts(high: str, low: str) -> tuple[Checkpoint, Checkpoint]:
    """Two complete experts of one model; raises ValueError or OSError otherwise."""
    pair = (
        _open(files.DIFFUSION_MODELS, high, "transformer"),
        _open(files.DIFFUSION_MODELS, low, "transformer"),
    )
    check_pair(*pair)
    for checkpoint in pair:
        _check_whole(WanTransformer(detect_transformer_config(checkpoint), device=META), checkpoint)
    return pair


def open_text_encoder(name: str) -> Checkpoint:
    """A complete text encoder with its tokenizer; raises ValueError or OSError otherwise."""
    checkpoint = _open(files.TEXT_ENCODERS, name, "text_encoder")
    config = detect_text_config(checkpoint)
    _check_whole(UMT5Encoder(config, device=META), checkpoint)
    pieces = find_tokenizer(checkpoint).vocab_size
    if pieces > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} knows {pieces} pieces, its encoder {config.vocab_size}; "
            "use the spiece.model of the same family"
        )
    return checkpoint


def open_vae(name: str) -> Checkpoint:
    """A complete VAE; raises ValueError or OSError otherwise."""
    checkpoint = _open(files.VAE, name, "vae")
    _check_whole(WanVAE(detect_vae_config(checkpoint), device=META), checkpoint)
    return checkpoint


def load_expert(checkpoint: Checkpoint) -> Any:
    """The MODEL of one expert."""
    config = detect_transformer_config(checkpoint)
    return build_model(config, checkpoint.state_dict(), family_defaults(checkpoint))


def load_clip(checkpoint: Checkpoint) -> Any:
    """The CLIP of a text encoder."""
    weights = checkpoint.state_dict()
    weights.pop(SPIECE_KEY, None)
    return build_clip(detect_text_config(checkpoint), find_tokenizer(checkpoint), weights)


def load_vae(checkpoint: Checkpoint) -> HostVAE:
    """The VAE object of a VAE file."""
    return HostVAE(detect_vae_config(checkpoint), checkpoint.state_dict())


def _open(folder: str, name: str, kind: str) -> Checkpoint:
    return open_checkpoint(files.find(folder, name), kind)


def _check_whole(built: nn.Module, checkpoint: Checkpoint) -> None:
    check_keys(built.state_dict(), checkpoint)
