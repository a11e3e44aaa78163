"""Weights from one published layout to another, tensor by tensor.

Layouts: ``single`` (one file as ComfyUI's own folders hold it), ``official`` (an expert as a folder of
shards, VAE and text encoder as ``.pth``), ``diffusers`` (one component folder with its config).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import SPIECE_FILE, SPIECE_KEY, Checkpoint, check_complete, find_pieces, identify
from ..files import SUFFIXES, shown
from ..files.write import Entry, write_safetensors
from ..keys import text as text_keys
from ..keys import transformer as transformer_keys
from ..keys import vae as vae_keys
from ..quant import dequantise
from ..video import whole_file
from .configs import component_config

LAYOUTS = ("single", "official", "diffusers")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SHARD_BYTES = 10 * 10**9

_STORED = dict(zip(("F32", "F16", "BF16"), DTYPES.values(), strict=True))
_SHARD_STEM = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model",
               "text_encoder": "model"}  # fmt: skip
_DIFFUSERS_NAMES: Mapping[str, Callable[[str], str | None]] = {
    "transformer": transformer_keys.diffusers_key,
    "vae": vae_keys.diffusers_key,
    "text_encoder": text_keys.hf_key,
}


def convert(
    checkpoint: Checkpoint,
    out: Path,
    *,
    layout: str,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[Path]:
    """Write a checkpoint in another layout.

    Args:
        checkpoint: what to convert; a pack of scales or blocks is unpacked.
        out: the file, or for shards and diffusers the folder, to make.
        layout: one of ``LAYOUTS``.
        dtype: of the weights; None keeps the stored one, and is refused for packed weights.
        shard_bytes: the most one shard may hold.

    Returns:
        The files written, weights last but for an index and a tokenizer.

    Raises:
        ValueError: unknown layout, packed weights without ``dtype``, an incomplete file, or a tiny decoder.
        OSError: the place cannot be written, or something is there already.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is unknown; use one of {', '.join(LAYOUTS)}")
    if checkpoint.is_tiny:
        raise ValueError(
            f"{checkpoint.where} is a tiny decoder, which has one layout; use it as it is"
        )
    pickled = layout == "official" and checkpoint.kind != "transformer"
    _check_name(out, single=layout == "single", pickled=pickled)
    check_complete(checkpoint)
    plain = {key: info for key, info in checkpoint.tensors.items() if info.dtype in _STORED}
    if dtype is None and len(plain) + (SPIECE_KEY in checkpoint.tensors) < len(checkpoint.tensors):
        raise ValueError(
            f"{checkpoint.where} is packed; say which dtype to unpack it to: {', '.join(DTYPES)}"
        )
    pieces = find_pieces(checkpoint) if checkpoint.kind == "text_encoder" else None
    target = _Target(
        out=out,
        entries=_entries(checkpoint, layout, dtype),
        metadata=_metadata(checkpoint),
        pieces=pieces,
    )
    spiece = _beside(out)
    other = pickled and pieces and spiece.exists() and spiece.read_bytes() != pieces
    if out.exists() or other:
        taken = out if out.exists() else spiece
        raise FileExistsError(f"{shown(taken)} exists already; choose another name or remove it")
    if layout == "single":
        return _write_single(target)
    if pickled:
        return _write_pth(target)
    config = component_config(checkpoint, layout)
    return _write_folder(target, _SHARD_STEM[checkpoint.kind], config, shard_bytes)


def _check_name(out: Path, *, single: bool, pickled: bool) -> None:
    """Other programs go by the ending of a name, so it must not lie."""
    own = (".safetensors", ".sft") if single else (".pth", ".pt") if pickled else ()
    if out.suffix in SUFFIXES and out.suffix not in own and not out.exists():
        made = f"a {own[0]} file" if own else "a folder"
        raise ValueError(f"{shown(out)} would be {made}; give it another ending")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """What is written, known whole before the first byte."""

    out: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    pieces: bytes | None
    """The tokenizer of a text encoder."""


def _entries(checkpoint: Checkpoint, layout: str, dtype: torch.dtype | None) -> dict[str, Entry]:
    """The tensors by their new names, in the order of the old file."""
    foreign = layout == "diffusers" or (layout == "single" and checkpoint.kind == "text_encoder")
    rename = _DIFFUSERS_NAMES[checkpoint.kind] if foreign else str
    state = checkpoint.state_dict()
    entries = {}
    for key, info in checkpoint.tensors.items():
        if key != SPIECE_KEY:
            target = dtype or _STORED[info.dtype]
            make = partial(_tensor, checkpoint, state, key, target)
            entries[rename(key) or key] = Entry(shape=info.shape, dtype=target, make=make)
    return entries


def _tensor(
    checkpoint: Checkpoint, state: Mapping[str, Tensor], key: str, dtype: torch.dtype
) -> Tensor:
    """One weight, unpacked, in ``dtype``."""
    layer = key.removesuffix(".weight")
    quant = checkpoint.quants.get(layer)
    if quant is None:
        weight = state[key].to(dtype)
    else:
        weight = dequantise(state[key], state.get(f"{layer}.weight_scale"), quant, dtype)
    if dtype is torch.float16 and not bool(torch.isfinite(weight).all()):
        raise ValueError(
            f"{shown(checkpoint.path)}: {key} does not fit into float16 or is not finite; use bfloat16"
        )
    return weight


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What a renamed file must still say of itself."""
    kept = {
        key: value
        for key, value in checkpoint.metadata.items()
        if key.startswith("wan_") or key == "boundary_ratio"
    }
    if checkpoint.kind == "transformer":
        known = identify(checkpoint)
        told = {"wan_role": known.role, "wan_release": known.release}
        kept |= {key: value for key, value in told.items() if value}
    return kept


def _write_single(target: _Target) -> list[Path]:
    entries = dict(target.entries)
    if target.pieces is not None:
        pieces = torch.frombuffer(bytearray(target.pieces), dtype=torch.uint8)
        entries[SPIECE_KEY] = Entry(
            shape=tuple(pieces.shape), dtype=torch.uint8, make=lambda: pieces
        )
    with whole_file(target.out) as part:
        write_safetensors(part, entries, target.metadata)
    return [target.out]


def _beside(out: Path) -> Path:
    """Where the official repository has the tokenizer of a text encoder."""
    return out.parent / "google" / "umt5-xxl" / SPIECE_FILE


def _write_pth(target: _Target) -> list[Path]:
    """All tensors are in memory at once, unless they keep their dtype: then they stay mapped."""
    with whole_file(target.out) as part:
        torch.save({name: entry.make() for name, entry in target.entries.items()}, part)
        if target.pieces is None:
            return [target.out]
        spiece = _beside(target.out)
        spiece.parent.mkdir(parents=True, exist_ok=True)
        spiece.write_bytes(target.pieces)
    return [target.out, spiece]


def _write_folder(
    target: _Target, stem: str, config: Mapping[str, object], shard_bytes: int
) -> list[Path]:
    """A component folder; it vanishes if the writing fails."""
    target.out.mkdir(parents=True)
    try:
        return _fill_folder(target, stem, config, shard_bytes)
    except BaseException:
        shutil.rmtree(target.out, ignore_errors=True)
        raise


def _fill_folder(
    target: _Target, stem: str, config: Mapping[str, object], shard_bytes: int
) -> list[Path]:
    shards = _shards(target.entries, shard_bytes)
    files = [
        target.out / (f"{stem}-{n:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else f"{stem}.safetensors")
        for n in range(1, len(shards) + 1)
    ]  # fmt: skip
    for file, shard in zip(files, shards, strict=True):
        write_safetensors(file, shard, target.metadata)
    written = [_write_json(target.out / "config.json", config), *files]
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in target.entries.values())},
            "weight_map": {
                name: file.name for file, shard in zip(files, shards, strict=True) for name in shard
            },
        }
        written.append(_write_json(target.out / f"{stem}.safetensors.index.json", index))
    if target.pieces is not None:
        written.append(target.out / SPIECE_FILE)
        written[-1].write_bytes(target.pieces)
    return written


def _shards(entries: Mapping[str, Entry], limit: int) -> list[dict[str, Entry]]:
    shards: list[dict[str, Entry]] = [{}]
    held = 0
    for name, entry in entries.items():
        if shards[-1] and held + entry.nbytes > limit:
            shards.append({})
            held = 0
        shards[-1][name] = entry
        held += entry.nbytes
    return shards


def _write_json(path: Path, value: Mapping[str, object]) -> Path:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    return path
