"""What a weight file says about itself before any weight is read."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .paths import shown

_TORCH_NAMES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "F4": "float4_e2m1fn_x2",
}
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, attribute)
    for name, attribute in _TORCH_NAMES.items()
    if hasattr(torch, attribute)
}
"""Plain dtypes by the name safetensors gives them, as far as this torch has them."""
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items() if name != "F4"}
"""The inverse, of dtypes whose elements are the weights: torch counts pairs of 4-bit ones."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies and how it is stored."""

    file: Path
    name: str
    """The name in the file."""
    dtype: str
    """As safetensors spells it (``F32``, ``BF16``, ``F8_E4M3``, ``I8``, ``U8`` ...) in every container;
    for packed GGUF tensors the name of the packing (``Q8_0``, ``Q4_K`` ...)."""
    shape: tuple[int, ...]
    """Of the weight, not of its packed bytes."""
    begin: int | None = None
    """First byte in the file; None where only torch knows it."""
    nbytes: int = 0
    """Bytes from there; 0 where only torch knows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """Tensors by stored name, and the metadata, of one file."""

    container: str
    """``safetensors``, ``gguf`` or ``pickle``."""
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def asked(path: Path, names: Iterable[str], held: Container[str]) -> list[str]:
    """``names`` as they came; ValueError if the file does not hold one of them."""
    names = list(names)
    for name in names:
        if name not in held:
            raise ValueError(f"{shown(path)} holds no tensor '{shown(name)}'; use another file")
    return names


def possible(shape: Sequence[int]) -> bool:
    """Whether torch can have a tensor of this shape, with room or without (an axis may be 0)."""
    return min(shape, default=0) >= 0 and math.prod(max(size, 1) for size in shape) < 2**63
