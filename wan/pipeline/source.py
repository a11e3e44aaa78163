"""Where the experts of a run get their weights: a whole file at a time, or block by block from disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from ..checkpoint import Checkpoint, load_transformer, place
from ..checkpoint.ahead import ReadAhead
from ..checkpoint.ring import Ring
from ..checkpoint.stream import block_loads, in_order, is_streamable, load_streamed
from ..transformer import WanTransformer

log = logging.getLogger(__name__)

STREAM = ("auto", "always", "never")
"""When the blocks of experts are read from disk as they run. ``auto``: where an expert does not fit the
free memory of the device. Mapped files cost a CPU no memory that it cannot take back, and, once read,
no copies: a streamed forward takes 4 % longer there."""
GB = 1e9
DEVICES = ("cpu", "cuda")
"""Where blocks can be streamed to."""
MEMORY = Path("/proc/meminfo")


class Source(Protocol):
    """Experts by their names, one at a time."""

    def load(self, name: str, dtype: torch.dtype) -> WanTransformer:
        """The expert in eval mode, computing in ``dtype``; the one loaded before is not used again."""

    def expect(self, name: str | None) -> None:
        """After the forward that comes next, ``name`` runs; None: nothing more."""

    def close(self) -> None:
        """End what reads in the background."""


def open_source(
    experts: Mapping[str, Checkpoint], device: torch.device, *, stream: str, working: int
) -> Source:
    """Where experts come from, see :data:`STREAM`; close it at the end.

    Args:
        experts: by name.
        device: where they run.
        stream: one of :data:`STREAM`, which :func:`check_stream` let pass.
        working: bytes a forward needs beside the weights.
    """
    if stream == "always" or (stream == "auto" and _is_better(experts, device, working)):
        return Streamed(experts, device)
    return Whole(experts, device)


def check_stream(stream: str, experts: Mapping[str, Checkpoint], device: torch.device) -> None:
    """Raise ValueError for an unknown choice, and for ``always`` where it cannot be."""
    if stream not in STREAM:
        raise ValueError(f"unknown stream={stream!r}; use one of {', '.join(STREAM)}")
    if stream != "always":
        return
    if device.type not in DEVICES:
        raise ValueError(f"blocks cannot be streamed to {device}; use cpu or cuda, or stream=auto")
    for expert in experts.values():
        if not is_streamable(expert):
            raise ValueError(
                f"{expert.where} is a torch file, which cannot be read block by block; use the "
                ".safetensors file of the same model, or stream=auto"
            )


def _is_better(experts: Mapping[str, Checkpoint], device: torch.device, working: int) -> bool:
    """Whether streaming is the better way for experts that are given the choice."""
    if device.type not in DEVICES or not all(map(is_streamable, experts.values())):
        return False
    largest = max(expert.nbytes for expert in experts.values())
    free = free_memory(device)
    if free is None or free >= largest + working:
        return False
    log.warning(
        "an expert of %.1f GB does not fit the %.1f GB that are free on %s: its blocks are read from "
        "disk as they run",
        largest / GB, free / GB, device,
    )  # fmt: skip
    return True


class Whole:
    """Experts that are there as a whole: mapped on the CPU, else on the device."""

    def __init__(self, experts: Mapping[str, Checkpoint], device: torch.device) -> None:
        self._experts, self._device = experts, device
        self._name: str | None = None
        self._ahead: dict[str, ReadAhead] = {}

    def load(self, name: str, dtype: torch.dtype) -> WanTransformer:
        """The expert; on the CPU its file is still read when this returns."""
        self._read_ahead(name)
        self._name = name
        model = load_transformer(self._experts[name].path, dtype=dtype)
        place(model, self._device, dtype)
        return model

    def expect(self, name: str | None) -> None:
        """Bring the next expert's file into memory, if both have room there."""
        if name is None or name == self._name or name in self._ahead:
            return
        free = free_memory(torch.device("cpu"))
        if free is not None and free > sum(expert.nbytes for expert in self._experts.values()):
            self._read_ahead(name)

    def close(self) -> None:
        """Stop reading."""
        while self._ahead:
            self._ahead.popitem()[1].close()

    def _read_ahead(self, name: str) -> None:
        if name not in self._ahead:
            self.close()
            self._ahead[name] = ReadAhead(in_order(self._experts[name]))


class Streamed:
    """Experts whose blocks come out of one ring of buffers, which goes on with the next expert's."""

    def __init__(self, experts: Mapping[str, Checkpoint], device: torch.device) -> None:
        self._experts, self._device = experts, device
        self._loads = {name: block_loads(expert, device) for name, expert in experts.items()}
        largest = max(load.nbytes for loads in self._loads.values() for load in loads)
        self.ring = Ring(largest, device)
        self._ahead: dict[str, ReadAhead] = {}

    def load(self, name: str, dtype: torch.dtype) -> WanTransformer:
        """The expert; its blocks have weights while they run."""
        path, loads = self._experts[name].path, self._loads[name]
        model, self._stream = load_streamed(path, loads, self.ring, self._device, dtype)
        self._name = name
        return model

    def expect(self, name: str | None) -> None:
        """Let the ring go on with the blocks of ``name``, and read what lies outside its blocks."""
        following = self._loads[name] if name is not None else ()
        self._stream.after = None if name == self._name else following
        if name not in (None, self._name) and name not in self._ahead:
            self._ahead[name] = ReadAhead(in_order(self._experts[name], blocks=False))

    def close(self) -> None:
        """End the ring."""
        self.ring.close()
        while self._ahead:
            self._ahead.popitem()[1].close()


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had on the CPU, those of cached files among them, or on a CUDA device.

    None where nobody tells.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return None
    told = (line.split() for line in lines)
    return next((int(words[1]) * 1024 for words in told if words[0] == "MemAvailable:"), None)
