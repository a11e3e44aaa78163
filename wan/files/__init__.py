"""Weight files as they lie on disk: headers first, then lazily mapped tensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from . import safetensors
from .header import Header, TensorInfo

__all__ = ["SUFFIXES", "Header", "TensorInfo", "read_header", "read_tensors"]

SUFFIXES = (".safetensors",)
"""Endings of the files that are read."""


def read_header(path: Path) -> Header:
    """What one file holds, without reading a weight.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a weight file, damaged or truncated; one sentence says which.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; check the name or download the file")
    return safetensors.read_header(path)


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of one file by stored name, mapped from disk where the container allows it.

    A packed GGUF tensor comes as its bytes, uint8 ``(rows, bytes per row)``.
    """
    return safetensors.read_tensors(path, names)
