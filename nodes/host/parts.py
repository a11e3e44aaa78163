"""The files of a family as checked headers, and as MODEL, CLIP and VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from ...wan.checkpoint import (
    SPIECE_KEY,
    Checkpoint,
    check_complete,
    check_keys,
    check_pair,
    check_scales,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    family_defaults,
    find_tokenizer,
    open_checkpoint,
    takes_normalized,
)
from ...wan.manifest import Mark, files_mark
from ...wan.quant import replace_layers
from ...wan.text import UMT5Encoder, check_vocabulary
from ...wan.transformer import WanTransformer
from ...wan.vae import WanVAE
from . import files
from .ahead import SPANS, spans_of
from .model import build_model
from .quant import META
from .text import build_clip
from .tiny import HostTinyVAE
from .vae import HostVAE


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two experts whose headers were checked."""

    high: Checkpoint
    low: Checkpoint
    oddities: tuple[str, ...]
    """Why they may be no pair, where the user insists."""


def open_experts(high: str, low: str, allow_mismatch: bool = False) -> Pair:
    """Two complete experts of one model.

    Raises:
        ValueError: a name that is not listed, a damaged or foreign file, or, unless
            ``allow_mismatch``, no pair.
        OSError: a file cannot be read.
    """
    pair = (
        _open(files.DIFFUSION_MODELS, high, "transformer"),
        _open(files.DIFFUSION_MODELS, low, "transformer"),
    )
    oddities = check_pair(*pair, allow_mismatch=True)
    if oddities and not allow_mismatch:
        raise ValueError(f"{oddities[0]}, or turn on allow_mismatch")
    for checkpoint in pair:
        _check(checkpoint, WanTransformer, detect_transformer_config(checkpoint))
    return Pair(high=pair[0], low=pair[1], oddities=tuple(oddities))


def open_text_encoder(name: str) -> Checkpoint:
    """A complete text encoder with its tokenizer; raises ValueError or OSError otherwise."""
    checkpoint = _open(files.TEXT_ENCODERS, name, "text_encoder")
    config = detect_text_config(checkpoint)
    _check(checkpoint, UMT5Encoder, config)
    pieces = _pieces(checkpoint.path, files.stamp(checkpoint.path))
    check_vocabulary(pieces, config.vocab_size, name)
    return checkpoint


def open_vae(name: str) -> Checkpoint:
    """A complete VAE or tiny decoder; raises ValueError or OSError otherwise."""
    checkpoint = _open(files.VAE, name, "vae")
    if checkpoint.is_tiny:
        check_complete(checkpoint)
    else:
        _check(checkpoint, WanVAE, detect_vae_config(checkpoint))
    return checkpoint


def load_expert(checkpoint: Checkpoint) -> Any:
    """The MODEL of one expert."""
    patcher = build_model(
        detect_transformer_config(checkpoint),
        checkpoint.state_dict(),
        family_defaults(checkpoint),
        checkpoint.quants,
    )
    patcher.model.wan_mark = _mark(checkpoint)
    setattr(patcher.model, SPANS, spans_of(checkpoint.tensors))
    return patcher


def load_clip(checkpoint: Checkpoint) -> Any:
    """The CLIP of a text encoder."""
    weights = checkpoint.state_dict()
    weights.pop(SPIECE_KEY, None)
    config, tokenizer = detect_text_config(checkpoint), find_tokenizer(checkpoint)
    return build_clip(config, tokenizer, weights, checkpoint.quants)


def load_vae(checkpoint: Checkpoint) -> HostVAE:
    """The VAE object of a VAE file or of a tiny decoder."""
    config, weights = detect_vae_config(checkpoint), checkpoint.state_dict()
    if checkpoint.is_tiny:
        normalized = takes_normalized(checkpoint)
        vae: HostVAE = HostTinyVAE(config, weights, normalized=normalized, name=checkpoint.name)
    else:
        vae = HostVAE(config, weights)
    vae.wan_mark = _mark(checkpoint)
    return vae


def _mark(checkpoint: Checkpoint) -> Mark:
    """What records of runs say of these weights."""
    return files_mark(checkpoint.path.name, checkpoint.files)


def _open(folder: str, name: str, kind: str) -> Checkpoint:
    return open_checkpoint(files.find(folder, name), kind)


def _check(checkpoint: Checkpoint, network: Callable[..., nn.Module], config: Any) -> None:
    """Raise ValueError unless the file fills a network of ``config``, packed as it is."""
    skeleton = _skeleton(network, config)
    check_keys(skeleton.state_dict(), checkpoint)
    replace_layers(skeleton, checkpoint.quants, lambda layer, _: layer)
    check_scales(checkpoint, checkpoint.read_scales())


# This and the next are asked for each prompt that is queued, and take a second at the real sizes.
@lru_cache(maxsize=8)
def _skeleton(network: Callable[..., nn.Module], config: Any) -> nn.Module:
    """A network without its memory."""
    return network(config, device=META)


@lru_cache(maxsize=8)
def _pieces(path: Path, _stamp: str) -> int:
    """Pieces that the tokenizer of a file knows; ``_stamp`` makes a replaced file another one."""
    return find_tokenizer(open_checkpoint(path, "text_encoder")).vocab_size
