"""States and latents as files: checked to the last bit, and under their name only when they are whole.

Plain safetensors. The metadata hold a SHA-256 over the other metadata and all tensors, and the file
takes its name only after its bytes are on the disk: whatever ends the program, a file with that name is
whole, or damage to it is seen.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..files import shown
from ..files.safetensors import read_header, read_tensors
from ..files.write import Entry, write_safetensors
from ..solvers import SolverState
from .key import tensor_bytes

FORM = 1
"""Version of the form below; another one is not read."""
STATE, RUN, DIGEST = "wan_state", "wan_run", "wan_digest"
PART = ".part"
"""What a file's name ends in until it is whole."""
LATENTS = "latent_tensor"
"""Name under which ComfyUI's Save Latent stores latents, and so do we."""
UNSCALED = "latent_format_version_0"
"""Name of an empty tensor: its presence says to ComfyUI that the values are not scaled."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunState:
    """A run between two steps: all that is needed to go on, bit for bit.

    Attributes:
        key: of the run, or of its steps so far, see :func:`~.key.run_key`.
        run: key of the whole run it was kept in.
        step: steps done, 0..total.
        total: steps of the run it was kept in.
        x: (B, C, T, H, W) float32 latents after ``step`` steps.
        solver: the solver's memory, with the seed of the noise it draws.
        manifest: what people want to know of the run; plain JSON.
    """

    key: str
    run: str
    step: int
    total: int
    x: Tensor
    solver: SolverState
    manifest: Mapping[str, object] = field(default_factory=dict)

    def to(self, device: torch.device) -> RunState:
        """The same state with its tensors on ``device``."""
        solver = replace(
            self.solver,
            history=tuple(held.to(device) for held in self.solver.history),
            last=None if self.solver.last is None else self.solver.last.to(device),
        )
        return replace(self, x=self.x.to(device), solver=solver)


def write_state(path: Path, state: RunState) -> None:
    """Write ``state`` to ``path``, replacing what is there.

    Raises:
        OSError: the disk is full or the folder cannot be written; what was at ``path`` is still there.
    """
    solver = state.solver
    told = {
        "form": FORM,
        "key": state.key,
        "run": state.run,
        "step": state.step,
        "total": state.total,
        "order": solver.order,
        "seed": solver.seed,
        "manifest": dict(state.manifest),
    }
    tensors = {"x": state.x}
    tensors |= {f"history.{i}": held for i, held in enumerate(solver.history)}
    if solver.last is not None:
        tensors["last"] = solver.last
    _write(path, tensors, {STATE: json.dumps(told, ensure_ascii=False)})


def read_state(path: Path, key: str) -> RunState:
    """The state in ``path``, copied into memory.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: damaged, cut off, no state, or that of another run than ``key``.
    """
    metadata, tensors = _read(path)
    try:
        told = json.loads(metadata[STATE])
        if told["form"] != FORM:
            raise ValueError(f"{shown(path)} is in the form of another version")
        if told["key"] != key:
            raise ValueError(f"{shown(path)} is the state of another run")
        history = sorted(name for name in tensors if name.startswith("history."))
        return RunState(
            key=key,
            run=told["run"],
            step=told["step"],
            total=told["total"],
            x=tensors["x"],
            solver=SolverState(
                history=tuple(tensors[name] for name in history),
                last=tensors.get("last"),
                order=told["order"],
                seed=told["seed"],
            ),
            manifest=told["manifest"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{shown(path)} is not the state of a run") from error


def write_latents(path: Path, latents: Tensor, key: str, metadata: Mapping[str, str]) -> None:
    """Raw latents (B, C, T, h, w) of the run ``key``, under the names ComfyUI's Load Latent reads.

    Raises:
        OSError: as :func:`write_state`.
    """
    _write(path, {LATENTS: latents, UNSCALED: torch.empty(0)}, {**metadata, RUN: key})


def read_kept_latents(path: Path, key: str) -> Tensor:
    """What :func:`write_latents` wrote for the run ``key``, copied into memory; raises as :func:`read_state`."""
    metadata, tensors = _read(path)
    if LATENTS not in tensors or metadata.get(RUN) != key:
        raise ValueError(f"{shown(path)} does not hold the latents of this run")
    return tensors[LATENTS]


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    entries = {
        name: Entry(shape=tuple(t.shape), dtype=t.dtype, make=lambda t=t: t)  # type: ignore[misc]
        for name, t in held.items()
    }
    metadata = {"format": "pt", **metadata}  # as it will be read back
    part = path.with_name(f"{path.name}{PART}")
    try:
        write_safetensors(part, entries, {**metadata, DIGEST: _digest(held, metadata)})
        _to_disk(part, os.O_RDWR)
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    with suppress(OSError):  # not every system can bring a folder to the disk
        _to_disk(path.parent, os.O_RDONLY)


def _to_disk(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    try:
        header = read_header(path)
        mapped = read_tensors(path, list(header.tensors))
    except ValueError as error:
        raise ValueError(f"{shown(path)} is damaged or cut off") from error
    metadata = dict(header.metadata)
    told = metadata.pop(DIGEST, None)
    if told is None:
        raise ValueError(f"{shown(path)} was not kept by a run")
    # Copied: a mapped file would change under the run when the ring comes round to it.
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    if _digest(tensors, metadata) != told:
        raise ValueError(f"{shown(path)} is damaged")
    return metadata, tensors


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    told = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        told.update(tensor_bytes(tensor))
    return told.hexdigest()
