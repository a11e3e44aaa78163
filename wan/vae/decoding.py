"""Decoding where memory is short: the plan that fits, and a smaller one from the frame where it ran out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..shapes import pixel_size
from .memory import COUNTED, plans_from, strips_for
from .model import WanVAE
from .strips import WHOLE
from .tiny import TinyVAE

log = logging.getLogger(__name__)

T = TypeVar("T")


def decode_dtype(device: str) -> torch.dtype:
    """In what a kind of device, such as ``cpu`` or ``cuda``, decodes: bfloat16 on CUDA, else float32."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def decode_within(
    decoder: WanVAE | TinyVAE,
    latents: Tensor,
    free_bytes: float,
    finish: Callable[[Tensor], T],
    *,
    kept: Path | None = None,
) -> Iterator[T]:
    """Decode one clip as it comes, in whole frames or in strips, which give the same frames.

    If memory runs out on the way, the clip is run again in the next smaller plan up to the latent
    frame it stopped at, and goes on from there: no frame is given twice.

    Args:
        decoder: where the latents are; a tiny one has no plans.
        latents: (1, C, T, h, w), raw, in the dtype of the computation.
        free_bytes: what the device has for it beside weights and latents.
        finish: makes of each chunk (1, 3, frames, H, W) in [-1, 1] what is given; what it takes of
            the device counts. A chunk that is run again comes again.
        kept: a file that holds the latents, to be named if memory runs out.

    Yields:
        What ``finish`` returns: for 1 frame, then for 4 per latent frame.

    Raises:
        torch.cuda.OutOfMemoryError: memory ran out in the last plan too; one sentence.
    """
    height, width = pixel_size(*latents.shape[-2:])
    plans = [WHOLE]
    if isinstance(decoder, WanVAE):
        fits = strips_for(height, width, decoder.config, latents.dtype, COUNTED * free_bytes)
        plans = plans_from(height, fits)
    done, told = 0, ""
    for number, plan in enumerate(plans, 1):
        if isinstance(decoder, WanVAE):
            stream = decoder.decode_stream(latents, plan)
        else:
            stream = decoder.decode_stream(latents)
        try:
            for finished in islice(map(finish, stream), done, None):
                done += 1
                yield finished
            return
        except torch.cuda.OutOfMemoryError as error:
            told = (
                f"{str(error).partition('. ')[0]}, at latent frame {done + 1} of {latents.shape[2]}"
            )
        # Not before the error has gone, which held what the frame had made.
        torch.cuda.empty_cache()
        if number < len(plans):
            log.warning("%s with %s; trying %s", told, plan, plans[number])
    raise torch.cuda.OutOfMemoryError(_no_room(decoder, latents, told, kept))


def _no_room(decoder: WanVAE | TinyVAE, latents: Tensor, told: str, kept: Path | None) -> str:
    height, width = pixel_size(*latents.shape[-2:])
    ways, strips = ["fewer pixels"], ""
    if isinstance(decoder, WanVAE):
        ways, strips = [*ways, "a tiny decoder such as taew2_1"], ", in the smallest strips too"
    if latents.dtype.itemsize > torch.bfloat16.itemsize:
        ways.append("bfloat16")
    dtype = str(latents.dtype).removeprefix("torch.")
    return (
        f"decoding {width}x{height} in {dtype} needs more memory than is free{strips} ({told}); "
        f"use {' or '.join(ways)}" + (f"; the latents are in {kept}" if kept else "")
    )
