"""Safetensors: a JSON header, then the bytes; tensors are mapped, not read."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .header import DTYPES, Header, TensorInfo, asked
from .paths import shown

HEADER_LIMIT = 100 * 1024 * 1024
STRUCTURE_LIMIT = 4_000_000
"""Brackets and commas a header may hold: 100 MB of them would become gigabytes of objects."""
MOST_AXES = 64
_BITS = {name: 4 if name == "F4" else dtype.itemsize * 8 for name, dtype in DTYPES.items()}


def read_header(path: Path) -> Header:
    """Tensors and metadata of one safetensors file.

    Raises:
        ValueError: not a safetensors file, damaged, truncated, or in a dtype that is not known here.
    """
    size = path.stat().st_size
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if length > HEADER_LIMIT:
            raise _damaged(path, f"it announces a header of {length} bytes")
        if 8 + length > size:
            raise _truncated(path, size, 8 + length)
        raw = handle.read(length)
    entries = _parse(path, raw)
    metadata = _metadata(path, entries.pop("__metadata__", None))
    end = 8 + length + _payload(path, entries)
    if size < end:
        raise _truncated(path, size, end)
    if size > end:
        raise _damaged(path, f"{size - end} bytes follow its last tensor")
    tensors = {}
    for name, entry in entries.items():
        begin, stop = entry["data_offsets"]
        tensors[name] = TensorInfo(
            path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + begin, stop - begin
        )
    return Header(container="safetensors", tensors=tensors, metadata=metadata)


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by stored name, mapped from disk: pages are read when they are first used."""
    try:
        with safe_open(str(path), framework="pt") as handle:
            held = set(handle.keys())
            return {name: handle.get_tensor(name) for name in asked(path, names, held)}
    except SafetensorError as error:
        raise _damaged(path, shown(error)) from error


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{shown(path)} is a damaged safetensors file ({why}); download it again")


def _truncated(path: Path, size: int, end: int) -> ValueError:
    return ValueError(f"{shown(path)} is truncated: {size} of {end} bytes; download it again")


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    """The header as an object without repeated names."""
    if sum(raw.count(mark) for mark in (b"{", b"[", b",")) > STRUCTURE_LIMIT:
        raise _damaged(path, "its header has more parts than any model")
    try:
        entries = json.loads(raw.decode(), object_pairs_hook=_unique)
        "".join(entries).encode()  # safetensors takes no lone surrogates in names
    except RecursionError as error:
        raise _damaged(path, "its header is nested without end") from error
    except UnicodeError as error:
        raise _damaged(path, "its header is not text") from error
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"its header: {shown(error)}") from error
    if not isinstance(entries, dict):
        raise _damaged(path, "its header is not a table of tensors")
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{twice!r} is named twice")
    return made


def _metadata(path: Path, metadata: object) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(path, "its metadata are not text")
    return metadata


def _payload(path: Path, entries: dict[str, Any]) -> int:
    """Bytes of tensor data, after a check that the tensors cover them without gap or overlap."""
    spans = sorted((*_span(path, name, entry), name) for name, entry in entries.items())
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            kind = "overlap" if begin < end else "leave a gap"
            raise _damaged(path, f"its tensors {kind} at '{shown(name)}'")
        end = stop
    return end


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    """First byte and end of one tensor, which its dtype and shape account for."""
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"'{shown(name)}' has no dtype, shape and place")
    dtype, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        raise _damaged(path, f"the dtype of '{shown(name)}' is no name")
    if dtype not in _BITS:
        raise ValueError(
            f"{shown(path)} stores '{shown(name)}' as {shown(dtype)}, which this torch cannot read; "
            "use a file in another precision"
        )
    if not (_sizes(shape) and _sizes(place) and len(place) == 2):
        raise _damaged(path, f"the shape or place of '{shown(name)}' is impossible")
    begin, end = place
    if (end - begin) * 8 != math.prod(shape) * _BITS[dtype]:
        raise _damaged(
            path, f"'{shown(name)}' has {end - begin} bytes, which are not {dtype} {shown(shape)}"
        )
    return begin, end


def _sizes(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= MOST_AXES
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )
