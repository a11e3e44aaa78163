"""Fast hashes: whether two weight files or tensors are the same, without reading them whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from io import FileIO
from pathlib import Path

import torch
from torch import Tensor

from .record import Mark

STRIPES = 1024
STRIPE_BYTES = 1024
HEAD_BYTES = 1 << 16
HEADER_LIMIT = 1 << 24
"""Bytes of a safetensors header that are read; published ones have 0.1 to 0.3 MB."""
SAMPLES = 32
"""Numbers of a tensor in memory that are looked at."""
DIGITS = 32


def file_mark(path: Path) -> Mark:
    """Name and fast hash of a weight file.

    The hash is SHA-256 over the size, names, types and places of the tensors, and 1024 stripes of 1 KiB
    of their bytes at even distances (the last one at the end): milliseconds for any size. In 28 GB a
    stripe comes every 28 MB, so that a change of one large matrix is seen; a change of a few numbers
    may not be. It is no proof that two files are equal to the last bit. Metadata of safetensors do not
    count. Kept while size and time of change stay.

    Raises:
        OSError: the file cannot be read.
    """
    return files_mark(path.name, [path])


def files_mark(name: str, files: Sequence[Path]) -> Mark:
    """:func:`file_mark` of shards under one ``name``, in their order."""
    digests = [_digest_now(path) for path in files]
    whole = digests[0] if len(digests) == 1 else _short(hashlib.sha256("".join(digests).encode()))
    return Mark(name=name, digest=whole)


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Fast hash of named tensors in memory: names, dtypes, shapes and 32 numbers of each.

    Tensors are told apart as they are stored: the same weights in another precision count as others.
    """
    told = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        told.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        told.update(_samples(tensor))
    return _short(told)


def text_digest(parts: Mapping[str, str]) -> str:
    """Hash of named texts, whatever their order."""
    told = "\n".join(f"{name}\0{parts[name]}" for name in sorted(parts))
    return _short(hashlib.sha256(told.encode()))


def _samples(tensor: Tensor) -> bytes:
    """Numbers at even distances, as bytes."""
    flat = tensor.detach().reshape(-1)
    count = flat.numel()
    if not count:
        return b""
    places = [i * (count - 1) // max(SAMPLES - 1, 1) for i in range(SAMPLES)]
    found = flat[torch.tensor(places, device=flat.device)].cpu().contiguous()
    return bytes(found.view(torch.uint8).numpy().data)


def _digest_now(path: Path) -> str:
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, _changed: int) -> str:
    with path.open("rb", buffering=0) as file:
        head = file.read(HEAD_BYTES)
        told, start = _layout(file, head)
        digest = hashlib.sha256(f"{size - start};".encode() + told)
        last = max(size - STRIPE_BYTES, start)
        for place in sorted({start + i * (last - start) // (STRIPES - 1) for i in range(STRIPES)}):
            file.seek(place)
            digest.update(file.read(STRIPE_BYTES))
    return _short(digest)


def _layout(file: FileIO, head: bytes) -> tuple[bytes, int]:
    """What the header says of the tensors, and where their bytes begin.

    Of safetensors without the metadata, and in one order: writers put the same header in any order. Of
    other files their beginning.
    """
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > HEADER_LIMIT:
        return head, 0
    header = head[8 : 8 + length] + file.read(max(0, 8 + length - len(head)))
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        return json.dumps(entries, sort_keys=True).encode(), 8 + length
    except (ValueError, RecursionError, AttributeError):  # no safetensors, or a damaged one
        return head, 0


def _short(told: hashlib._Hash) -> str:
    return told.hexdigest()[:DIGITS]
