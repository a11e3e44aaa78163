"""A random expert in a file of the published form, and what a disk does with it."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from wan.config import TransformerConfig
from wan.files.write import Entry, write_safetensors
from wan.transformer import WanTransformer

from .forward import SIZES

DTYPE = torch.bfloat16
PIECE = 1 << 25
"""Bytes of one read of the bare reads."""


def sized(layers: int) -> TransformerConfig:
    """The 1.3B shape with so many blocks."""
    return replace(SIZES, num_layers=layers)


def write_expert(path: Path, layers: int, seed: int = 0) -> int:
    """A bfloat16 expert at which signals neither die nor explode; returns the bytes of one block.

    Tensors of one shape hold the same numbers, in another order.
    """
    model = WanTransformer(sized(layers), device=torch.device("meta"), dtype=DTYPE)
    shapes = {name: tuple(value.shape) for name, value in sorted(model.state_dict().items())}
    drawn: dict[tuple[tuple[int, ...], bool], Tensor] = {}
    entries = {
        name: Entry(
            shape=shape, dtype=DTYPE, make=lambda n=number, s=shape, k=name: _draw(drawn, n, s, k, seed)
        )
        for number, (name, shape) in enumerate(shapes.items())
    }  # fmt: skip
    write_safetensors(path, entries, {})
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return sum(value.numel() * DTYPE.itemsize for value in model.blocks[0].state_dict().values())


def _draw(
    drawn: dict[tuple[tuple[int, ...], bool], Tensor],
    number: int,
    shape: tuple[int, ...],
    name: str,
    seed: int,
) -> Tensor:
    norm = "norm" in name and name.endswith("weight")
    if (shape, norm) not in drawn:
        generator = torch.Generator().manual_seed(seed + len(drawn))
        flat = len(shape) < 2 or "modulation" in name
        scale = 0.1 if flat else torch.Size(shape[1:]).numel() ** -0.5
        values = torch.randn(shape, generator=generator).mul_(scale).add_(int(norm))
        drawn[shape, norm] = values.to(DTYPE)
    return drawn[shape, norm].roll(number, 0)


def drop(path: Path) -> None:
    """Let the system forget what it keeps of a file."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bare_read(path: Path, first: int) -> tuple[float, float]:
    """Seconds until ``first`` bytes of a file were read in large pieces, and until all were."""
    buffer = memoryview(bytearray(PIECE))
    done, early = 0, 0.0
    with path.open("rb", buffering=0) as file:
        start, size = time.perf_counter(), os.fstat(file.fileno()).st_size
        while done < size:
            done += os.preadv(file.fileno(), [buffer], done)
            if not early and done >= first:
                early = time.perf_counter() - start
    return early, time.perf_counter() - start
