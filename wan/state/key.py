"""What determines a run, as one name: equal names, equal runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor


def run_key(parts: Mapping[str, object]) -> str:
    """A name of 64 hexadecimal digits for ``parts``: SHA-256 of their canonical JSON.

    Args:
        parts: all that determines a run, or its first steps: text, numbers, booleans, None, tensors,
            and lists, tuples and mappings (by text) of these. Tensors count by dtype, shape and bytes,
            wherever they lie; the order of a mapping does not count.

    Raises:
        TypeError: something else is among them.
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=_tensor)
    return hashlib.sha256(text.encode()).hexdigest()


def _tensor(value: object) -> object:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{type(value).__name__} has no canonical form; use text, numbers or tensors"
        )
    return {"tensor": [str(value.dtype), list(value.shape), tensor_digest(value)]}


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes in order, as 64 hexadecimal digits."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in order, without a copy where it lies in order in the CPU's memory."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
