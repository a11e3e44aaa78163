"""Files of tiny decoders with random weights, named and stored as they are published."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from wanexperts.tests.helpers import random_state
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.vae import TinyVAE

NORMALIZED, RAW = "taew2_1", "lighttaew2_1"


def tiny_state(seed: int = 5) -> dict[str, Tensor]:
    """A decoder whose frames fill the range from black to white without leaving it much."""
    state = random_state(TinyVAE(VAEConfig(), normalized=True), seed)
    state["decoder.22.weight"] *= 0.5
    state["decoder.22.bias"] = torch.full((3,), 0.5)
    return state


def write_tiny(path: Path, *, seed: int = 5, dtype: torch.dtype = torch.float32) -> Path:
    """The file, with a part of the encoder as the published ones have; ``.pth`` is a torch archive."""
    state = {key: value.to(dtype) for key, value in tiny_state(seed).items()}
    state["encoder.0.weight"] = torch.zeros(64, 3, 3, 3, dtype=dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path
