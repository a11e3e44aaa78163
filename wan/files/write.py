"""Safetensors written tensor by tensor: a file larger than memory needs room for one tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .header import NAMES

_ALIGNMENT = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A tensor to write: known by shape and dtype first, made when its turn comes."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(
    path: Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> None:
    """Write ``entries`` in their order; ``metadata`` are plain strings.

    Raises:
        OSError: the disk is full or the path cannot be written.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    offset = 0
    for name, entry in entries.items():
        end = offset + entry.nbytes
        header[name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        for entry in entries.values():
            tensor = entry.make().to(entry.dtype).contiguous()
            tensor.reshape(-1).view(torch.uint8).numpy().tofile(handle)
