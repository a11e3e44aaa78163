"""Saved or fresh latents to frames, as the library and its command line do it on any device."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import load_decoder, place
from ..vae import decode_dtype, decode_within
from ..video import to_frames
from .source import free_memory

log = logging.getLogger(__name__)


@torch.no_grad()
def decode_frames(
    path: Path,
    latents: Tensor,
    device: torch.device,
    *,
    bits: int = 8,
    kept: Path | None = None,
) -> Iterator[Tensor]:
    """Frames of raw latents (1, 16, T, h, w) as they come, each made when it is asked for.

    On CUDA in bfloat16 and by the free memory, see :func:`~.vae.decode_within`; on the CPU in float32
    and whole frames, whatever else needs memory there: the same frames at each call.

    Args:
        path: a VAE or a tiny decoder.
        latents: of any dtype, on any device.
        device: where the decoder runs.
        bits: 8 or 16.
        kept: a file that holds the latents, to be named if memory runs out.

    Yields:
        (n, H, W, 3) uint8 or uint16 on the CPU, n = 1, 4, 4, ...

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no decoder, or not of these latents.
        FloatingPointError: the frames hold NaN or infinity.
        torch.cuda.OutOfMemoryError: memory ran out in every plan; one sentence.
    """
    log.info("reading %s", path)
    dtype = decode_dtype(device.type)
    decoder = load_decoder(path, dtype=dtype)
    place(decoder, device, dtype)
    latents = latents.to(device, dtype)
    yield from decode_within(
        decoder,
        latents,
        _free(device),
        lambda chunk: to_frames(chunk[0], bits).cpu(),
        kept=kept,
    )


def _free(device: torch.device) -> float:
    """Bytes for activations on a CUDA device; anywhere else plans are not chosen by memory."""
    if device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()  # what earlier phases have left would count as taken
    free = free_memory(device)
    return math.inf if free is None else free
