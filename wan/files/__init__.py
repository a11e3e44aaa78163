"""Weight files as they lie on disk: headers first, then lazily mapped tensors.

The kind of a file is told by its first bytes, whatever its name ends in.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from torch import Tensor

from . import gguf, pickles, safetensors
from .header import DTYPES, Header, TensorInfo
from .paths import is_folder, read_head, shown

__all__ = [
    "DTYPES",
    "SUFFIXES",
    "Header",
    "TensorInfo",
    "is_folder",
    "read_header",
    "read_tensors",
    "read_tokenizer",
    "shown",
]

SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".gguf")
"""Endings of the files that are read."""

_ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "RAR",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")


def read_header(path: Path) -> Header:
    """What one file holds, without reading a weight.

    Raises:
        FileNotFoundError: no such file.
        OSError: a folder, a pipe, a loop of links, or not readable.
        ValueError: not a weight file, damaged or truncated; one sentence says which.
    """
    header: Header = _reader(path).read_header(path)
    return header


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors of one file by stored name, mapped from disk: pages are read when they are first used.

    A packed GGUF tensor comes as its bytes, uint8 ``(rows, bytes per row)``.

    Raises:
        OSError, ValueError: as :func:`read_header`, or a name the file does not hold.
    """
    tensors: dict[str, Tensor] = _reader(path).read_tensors(path, names)
    return tensors


def read_tokenizer(path: Path) -> bytes | None:
    """The sentencepiece model in the metadata of a GGUF file; None from any other file or tokenizer.

    Raises:
        OSError, ValueError: as :func:`read_header`.
    """
    return gguf.read_tokenizer(path) if _reader(path) is gguf else None


def _reader(path: Path) -> ModuleType:
    """The reader of a file, by its first bytes."""
    head = read_head(path)
    if not head:
        raise ValueError(f"{shown(path)} is empty; download it again")
    if head.startswith(b"GGUF"):
        return gguf
    if head.startswith(b"PK\x03\x04"):
        return pickles
    # Before pickles: the length of a safetensors header may start with the bytes of one.
    if head[8:].lstrip().startswith(b"{"):
        return safetensors
    if head[0] == 0x80 and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        raise pickles.legacy(path)
    raise _foreign(path, head)


def _foreign(path: Path, head: bytes) -> ValueError:
    """What a file is that is none of ours."""
    if head.startswith(b"version https://git-lfs"):
        return ValueError(
            f"{shown(path)} is a git-LFS pointer, a note where the file lies; "
            "download the file itself (`git lfs pull`)"
        )
    if head.lstrip().lower().startswith(_PAGES):
        return ValueError(
            f"{shown(path)} is a web page saved under this name; download the file itself "
            "(a login or a licence may have to be accepted first)"
        )
    archive = next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), None)
    if archive:
        return ValueError(f"{shown(path)} is a {archive} archive; unpack it")
    if not any(head):
        return ValueError(
            f"{shown(path)} starts with zeros: its download did not finish; download it again"
        )
    words = " ".join(head.decode("ascii", errors="replace").split())
    if words.isascii() and words.isprintable():
        return ValueError(
            f"{shown(path)} holds text ({words[:60]!r}), not weights; download it again"
        )
    return ValueError(
        f"{shown(path)} is not a weight file of a known kind; "
        "use a .safetensors, .gguf or .pth download"
    )
