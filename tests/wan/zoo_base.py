"""What a kind of file is in the zoo, and small tools to make one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from wanexperts.tests.helpers import random_state, sentencepiece_model
from wanexperts.tests.wan.family import EXPERT, SMALL_VAE, TEXT
from wanexperts.wan.text import UMT5Encoder
from wanexperts.wan.transformer import WanTransformer
from wanexperts.wan.vae import WanVAE

OPEN, LOAD, GENERATE, INSPECT, CONVERT = "open", "load", "generate", "inspect", "convert"
RESOLVE = "resolve"

EVERYWHERE = (OPEN, LOAD, GENERATE, INSPECT, CONVERT)
"""The header alone says that the file is of no use."""
ONCE_KNOWN = (LOAD, GENERATE, INSPECT, CONVERT)
"""It shows when the network that the file would fill is known."""
MISPLACED = (OPEN, LOAD, GENERATE)
"""A good file in the place of another."""
TOGETHER = (LOAD, GENERATE)
"""A good file that does not fit the others."""
LORA = (RESOLVE, LOAD, GENERATE, INSPECT, CONVERT)
ADAPTED = (RESOLVE, LOAD, GENERATE)
"""It shows when the network that the LoRA would change is known."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file."""

    name: str
    make: Callable[[Path], Path]
    """Writes it into an empty folder; returns what a person chooses."""
    words: str
    """What its sentence must say."""
    part: str = "high"
    """Where it is chosen: ``high``, ``vae``, ``text`` or ``lora``."""
    doors: Sequence[str] = EVERYWHERE
    emulate: Callable[[pytest.MonkeyPatch, Path], None] | None = None
    """What the machine must be made to do, where a file alone cannot show it."""
    host: bool = False
    """One of the few that are also sent through a real server."""


def write(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    """A safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Copies: what shares memory is not written.
    save_file({k: t.clone() for k, t in tensors.items()}, path, metadata=metadata or None)
    return path


def write_raw(path: Path, header: object, payload: int | None = None) -> Path:
    """A safetensors file of any header; the payload is a hole of ``payload`` bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    if payload is None:
        entries = header.values() if isinstance(header, dict) else ()
        payload = max((entry["data_offsets"][1] for entry in entries), default=0)
    with path.open("wb") as handle:
        handle.write(len(text).to_bytes(8, "little") + text)
        handle.truncate(8 + len(text) + payload)
    return path


def layout(shapes: Mapping[str, tuple[str, tuple[int, ...], int]]) -> dict[str, dict[str, object]]:
    """A safetensors header: name -> (dtype, shape, bytes), one after the other."""
    header: dict[str, dict[str, object]] = {}
    end = 0
    for name, (dtype, shape, nbytes) in shapes.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    return header


def names_only(*names: str) -> Callable[[Path], Path]:
    """The maker of a file that holds nothing but small tensors of these names."""

    def make(folder: Path) -> Path:
        return write(folder / "model.safetensors", {name: torch.zeros(2, 2) for name in names})

    return make


@lru_cache(maxsize=8)
def _state(network: type[nn.Module], config: object, seed: int) -> dict[str, Tensor]:
    return random_state(network(config), seed)


def expert(config: object = EXPERT, seed: int = 1) -> dict[str, Tensor]:
    """Weights of one expert that fits the good family."""
    return dict(_state(WanTransformer, config, seed))


def vae(config: object = SMALL_VAE) -> dict[str, Tensor]:
    """Weights of a VAE that fits the good family."""
    return dict(_state(WanVAE, config, 3))


def text(config: object = TEXT) -> dict[str, Tensor]:
    """Weights of a text encoder that fits the good family, with its tokenizer."""
    return {**_state(UMT5Encoder, config, 4), "spiece_model": spiece(60)}


@lru_cache(maxsize=4)
def spiece(size: int) -> Tensor:
    """A tokenizer as the tensor that text encoder files carry."""
    return torch.frombuffer(bytearray(sentencepiece_model(size)), dtype=torch.uint8)
