"""The zip archive around a torch file: its directory checked before torch, or a pickle, sees it."""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .paths import shown

PICKLE_LIMIT = 1024 * 1024
"""Bytes of a pickle; that of a model of 1,100 tensors has 130 KB."""
DIRECTORY_LIMIT = 32 * 1024 * 1024
MEMBER_LIMIT = 100_000
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """The parts of a torch file that matter here."""

    pickle: zipfile.ZipInfo
    byteorder: zipfile.ZipInfo | None
    sizes: frozenset[int]
    """Bytes of the storages."""


def torch_members(path: Path) -> Members:
    """The parts of a file of ``torch.save``.

    Raises:
        ValueError: truncated, damaged, a bomb, or another archive.
    """
    _check_end(path)
    try:
        with zipfile.ZipFile(path) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise damaged(path, "its directory of parts cannot be read") from error
    if len(listed) > MEMBER_LIMIT:
        raise damaged(path, f"it has {len(listed)} parts")
    parts = _parts(path, listed)
    _check_sizes(path, listed)
    storages = {name: one for name, one in parts.items() if name.startswith("data/")}
    if max(one.file_size for name, one in parts.items() if name not in storages) > PICKLE_LIMIT:
        raise damaged(path, "its pickle is larger than any model's")
    return Members(
        pickle=parts["data.pkl"],
        byteorder=parts.get("byteorder"),
        sizes=frozenset(one.file_size for one in storages.values()),
    )


def _check_sizes(path: Path, listed: list[zipfile.ZipInfo]) -> None:
    """Raise ValueError unless the parts lie in the file as they are, none over another."""
    size = path.stat().st_size
    if any(one.compress_type != zipfile.ZIP_STORED or one.flag_bits & 1 for one in listed):
        raise ValueError(
            f"{shown(path)} is a compressed or encrypted archive, which torch never writes; "
            "unpack it, or use the .safetensors file of the same model"
        )
    if sum(one.file_size for one in listed) > size or any(
        one.file_size != one.compress_size
        or one.header_offset < 0
        or one.header_offset + one.file_size > size
        for one in listed
    ):
        raise damaged(path, "its parts do not fit the file")


def _parts(path: Path, listed: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The parts of a torch file by their names in its one folder."""
    names = {one.filename.lower(): one for one in listed}
    if len(names) < len(listed):
        raise damaged(path, "it has two parts of one name")
    top = next(iter(names), "").partition("/")[0] + "/"
    parts = {name.removeprefix(top): one for name, one in names.items()}
    if "constants.pkl" in parts:
        raise ValueError(
            f"{shown(path)} is a TorchScript program, not weights; use a .safetensors file"
        )
    if "data.pkl" not in parts or not all(name.startswith(top) for name in names):
        raise ValueError(
            f"{shown(path)} is a zip archive, but not of torch weights; unpack it, or use another file"
        )
    return parts


def read_member(path: Path, member: zipfile.ZipInfo) -> bytes:
    """The bytes of one part; ValueError if they are not what the directory says."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        raise damaged(path, f"its part {shown(member.filename)} cannot be read") from error


def damaged(path: Path, why: str) -> ValueError:
    """The sentence for a torch file that is not as it was written."""
    return ValueError(f"{shown(path)} is a damaged torch file ({why}); download it again")


def _check_end(path: Path) -> None:
    """Raise ValueError unless the archive ends in a directory of sane size, as torch writes it."""
    size = path.stat().st_size
    with path.open("rb") as handle:
        handle.seek(max(0, size - _END.size - _END64_LOCATOR.size))
        tail = handle.read()
        if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06":
            raise ValueError(
                f"{shown(path)} is truncated: it starts as a torch file and lacks its end; "
                "download it again"
            )
        nbytes = _END.unpack(tail[-_END.size :])[5]
        locator = tail[: -_END.size]
        if locator[:4] == b"PK\x06\x07" and len(locator) == _END64_LOCATOR.size:
            handle.seek(min(_END64_LOCATOR.unpack(locator)[2], size))
            record = handle.read(_END64.size)
            nbytes = _END64.unpack(record)[8] if len(record) == _END64.size else size
    if nbytes > DIRECTORY_LIMIT:
        raise damaged(path, f"its directory of parts has {nbytes} bytes")
