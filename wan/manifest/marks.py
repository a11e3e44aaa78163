"""Fast hashes: whether two weight files or tensors are the same, without reading them whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
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

    The hash is SHA-256 over the size, the header, and 1024 stripes of 1 KiB at even distances (with the
    last one at the end): milliseconds for any size. In 28 GB a stripe comes every 28 MB, so that a
    change of one large matrix is seen; a change of a few numbers may not be. It is no proof that two
    files are equal to the last bit. Kept while size and time of change stay.

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
    told = hashlib.sha256(str(size).encode())
    with path.open("rb", buffering=0) as file:
        head = file.read(HEAD_BYTES)
        told.update(head)
        announced = int.from_bytes(head[:8], "little")
        if HEAD_BYTES < 8 + announced <= HEADER_LIMIT:
            told.update(file.read(8 + announced - HEAD_BYTES))
        last = max(size - STRIPE_BYTES, 0)
        for place in sorted({i * last // (STRIPES - 1) for i in range(STRIPES)}):
            file.seek(place)
            told.update(file.read(STRIPE_BYTES))
    return _short(told)


def _short(told: hashlib._Hash) -> str:
    return told.hexdigest()[:DIGITS]
