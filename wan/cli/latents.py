"""Saved latents, as ComfyUI's Save Latent writes and its Load Latent reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..files import read_header, read_tensors, shown
from ..state import LATENTS, STATE, UNSCALED
from ..video import whole_file

_OLD_SCALE = 0.18215


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SavedLatents:
    """Raw latents (B, C, T, h, w) float32 and what the file tells of them."""

    latents: Tensor
    metadata: Mapping[str, str]

    @property
    def manifest(self) -> dict[str, object]:
        """What `generate` wrote about its run, see :func:`.generate.describe`; empty for other files."""
        try:
            told = json.loads(self.metadata.get("wan", "{}"))
        except ValueError:
            return {}
        return told if isinstance(told, dict) else {}


def save_latents(path: Path, latents: Tensor, metadata: dict[str, object]) -> None:
    """Raw latents (1, 16, T, h, w) under the names ComfyUI's Load Latent reads."""
    tensors = {LATENTS: latents.cpu().contiguous(), UNSCALED: torch.empty(0)}
    data = save(tensors, metadata={"wan": json.dumps(metadata, ensure_ascii=False)})
    with whole_file(path) as partial:
        partial.write_bytes(data)


def read_latents(path: Path) -> SavedLatents:
    """Latents of a file; those of an image become clips of one latent frame.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: damaged, or it holds no latents.
    """
    header = read_header(path)
    if STATE in header.metadata:
        raise ValueError(
            f"{shown(path)} is a run between two steps; run its `generate` again, which goes on "
            "from there"
        )
    stored = header.tensors.get(LATENTS)
    if stored is None or len(stored.shape) not in (4, 5):
        raise ValueError(
            f"{shown(path)} holds no latents; use a file of `generate --save-latents` or of "
            "ComfyUI's Save Latent"
        )
    latents = read_tensors(path, [LATENTS])[LATENTS].float()
    if UNSCALED not in header.tensors:
        latents = latents / _OLD_SCALE
    if latents.ndim == 4:
        latents = latents.unsqueeze(2)
    return SavedLatents(latents=latents, metadata=header.metadata)
