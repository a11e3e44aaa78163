"""What runs, from the headers of its files; missing ones are taken as published."""

from __future__ import annotations

from collections import Counter
from math import prod

import torch
from torch import nn

from ..checkpoint import (
    Checkpoint,
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
)
from ..checkpoint.layouts import SPIECE_KEY
from ..config import T2V_A14B, FamilyConfig
from ..files.header import DTYPES
from ..quant import packed_shape
from ..text import UMT5Encoder
from ..transformer import WanTransformer
from ..vae import WanVAE, decode_dtype
from .forecast import Networks, Weights
from .live import META

PACKED = torch.float8_e4m3fn
"""Stands for every packing: a narrow weight that each use makes wider."""
PUBLISHED = torch.bfloat16
"""What weights are published in, near enough."""


def read_networks(
    high: Checkpoint | None,
    low: Checkpoint | None,
    *,
    vae: Checkpoint | None = None,
    text: Checkpoint | None = None,
    dtype: torch.dtype,
    device: str,
    family: FamilyConfig = T2V_A14B,
) -> Networks:
    """The networks of these files on a kind of device; a missing one (None) is of ``family`` in bfloat16.

    Experts keep weights narrower than ``dtype`` and packed ones as they are; the text encoder
    runs in float32 and keeps its likewise, the VAE in what it decodes in on this kind of device.

    Raises:
        ValueError: a file is of another model.
    """
    given = next((expert for expert in (high, low) if expert is not None), None)
    config = detect_transformer_config(given) if given else family.transformer
    text_config = detect_text_config(text) if text else family.text
    vae_config = detect_vae_config(vae) if vae else family.vae
    usual = None if high and low else _published(WanTransformer(config, device=META))
    experts = [(held_weights(e, dtype) if e else usual) for e in (high, low)]
    return Networks(
        transformer=config,
        dtype=dtype,
        device=device,
        experts=tuple(weights for weights in experts if weights is not None),
        text=(
            text_config,
            held_weights(text, torch.float32)
            if text
            else _published(UMT5Encoder(text_config, device=META)),
        ),
        vae=(
            vae_config,
            held_weights(vae, decode_dtype(device))
            if vae
            else _published(WanVAE(vae_config, device=META)),
        ),
        tiny=vae is not None and vae.is_tiny,
    )


def held_weights(checkpoint: Checkpoint, dtype: torch.dtype) -> Weights:
    """The weights of a file as :func:`~.checkpoint.place` leaves them on a device for ``dtype``."""
    size: Counter[torch.dtype] = Counter()
    for key, info in checkpoint.tensors.items():
        if key == SPIECE_KEY:
            continue
        if quant := checkpoint.quants.get(key.removesuffix(".weight")):
            shape, stored = packed_shape(quant)
            size[PACKED] += prod(shape) * stored.itemsize
            continue
        stored = DTYPES.get(info.dtype, PUBLISHED)
        held = stored if stored.itemsize < dtype.itemsize else dtype
        size[held] += prod(info.shape) * held.itemsize
    return Weights(nbytes=size.total(), dtype=size.most_common(1)[0][0])


def _published(network: nn.Module) -> Weights:
    count = sum(parameter.numel() for parameter in network.parameters())
    return Weights(nbytes=count * PUBLISHED.itemsize, dtype=PUBLISHED)
