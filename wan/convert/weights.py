"""Weights from one published layout to another, tensor by tensor.

Layouts: ``single`` (one file as ComfyUI's own folders hold it), ``official`` (an expert as a folder of
shards, VAE and text encoder as ``.pth``), ``diffusers`` (one component folder with its config).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import SPIECE_KEY, Checkpoint, find_pieces, identify
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
        The files written, weights last but for an index.

    Raises:
        ValueError: unknown layout, or packed weights without ``dtype``.
        OSError: the place cannot be written, or something is there already.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is unknown; use one of {', '.join(LAYOUTS)}")
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another name or remove it")
    plain = {key: info for key, info in checkpoint.tensors.items() if info.dtype in _STORED}
    if dtype is None and len(plain) + (SPIECE_KEY in checkpoint.tensors) < len(checkpoint.tensors):
        raise ValueError(
            f"{checkpoint.path} is packed; say which dtype to unpack it to: {', '.join(DTYPES)}"
        )
    named = _names(checkpoint, layout)
    entries = {name: _entry(checkpoint, key, dtype) for name, key in named.items()}
    if layout == "single":
        return _write_single(checkpoint, out, entries)
    if layout == "official" and checkpoint.kind != "transformer":
        return _write_pth(checkpoint, out, entries)
    return _write_folder(checkpoint, out, entries, layout=layout, shard_bytes=shard_bytes)


def _names(checkpoint: Checkpoint, layout: str) -> dict[str, str]:
    """Name in the new file -> official key, in the order of the old file."""
    foreign = layout == "diffusers" or (layout == "single" and checkpoint.kind == "text_encoder")
    rename = _DIFFUSERS_NAMES[checkpoint.kind] if foreign else str
    return {rename(key) or key: key for key in checkpoint.tensors if key != SPIECE_KEY}


def _entry(checkpoint: Checkpoint, key: str, dtype: torch.dtype | None) -> Entry:
    info = checkpoint.tensors[key]
    target = dtype or _STORED[info.dtype]
    return Entry(shape=info.shape, dtype=target, make=partial(_tensor, checkpoint, key, target))


def _tensor(checkpoint: Checkpoint, key: str, dtype: torch.dtype) -> Tensor:
    """One weight, unpacked, in ``dtype``."""
    (stored,) = checkpoint.read(key)
    layer = key.removesuffix(".weight")
    if layer not in checkpoint.quants:
        return stored.to(dtype)
    scale = checkpoint.scale(layer)
    return dequantise(stored, scale, checkpoint.quants[layer], dtype)


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What a renamed file must still say of itself."""
    kept = {key: value for key, value in checkpoint.metadata.items() if key.startswith("wan_")}
    if checkpoint.kind == "transformer" and (role := identify(checkpoint).role):
        kept["wan_role"] = role
    return kept


def _write_single(checkpoint: Checkpoint, out: Path, entries: dict[str, Entry]) -> list[Path]:
    if checkpoint.kind == "text_encoder":
        pieces = torch.frombuffer(bytearray(find_pieces(checkpoint)), dtype=torch.uint8)
        entries[SPIECE_KEY] = Entry(
            shape=tuple(pieces.shape), dtype=torch.uint8, make=lambda: pieces
        )
    with whole_file(out) as part:
        write_safetensors(part, entries, _metadata(checkpoint))
    return [out]


def _write_pth(checkpoint: Checkpoint, out: Path, entries: Mapping[str, Entry]) -> list[Path]:
    """All tensors are in memory at once, unless they keep their dtype: then they stay mapped."""
    written = []
    if checkpoint.kind == "text_encoder":
        written = [out.parent / "google" / "umt5-xxl" / "spiece.model"]
        written[0].parent.mkdir(parents=True, exist_ok=True)
        written[0].write_bytes(find_pieces(checkpoint))
    with whole_file(out) as part:
        torch.save({name: entry.make() for name, entry in entries.items()}, part)
    return [*written, out]


def _write_folder(
    checkpoint: Checkpoint,
    out: Path,
    entries: Mapping[str, Entry],
    *,
    layout: str,
    shard_bytes: int,
) -> list[Path]:
    stem = _SHARD_STEM[checkpoint.kind]
    shards = _shards(entries, shard_bytes)
    out.mkdir(parents=True)
    files = [
        out / (f"{stem}-{n:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else f"{stem}.safetensors")
        for n in range(1, len(shards) + 1)
    ]  # fmt: skip
    for file, shard in zip(files, shards, strict=True):
        with whole_file(file) as part:
            write_safetensors(part, shard, _metadata(checkpoint))
    written = [_write_json(out / "config.json", component_config(checkpoint, layout)), *files]
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.nbytes for entry in entries.values())},
            "weight_map": {
                name: file.name for file, shard in zip(files, shards, strict=True) for name in shard
            },
        }
        written.append(_write_json(out / f"{stem}.safetensors.index.json", index))
    if checkpoint.kind == "text_encoder":
        written.append(out / "spiece.model")
        written[-1].write_bytes(find_pieces(checkpoint))
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
