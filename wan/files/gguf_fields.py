"""The metadata of a GGUF file, walked with every length checked against what is there."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import mmap

from .paths import shown

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING = 8
_ARRAY = 9
_DEEPEST = 4
_LONGEST_NAME = 1 << 16
_SMALLEST_FIELD = 8 + 4 + 1


class Damaged(ValueError):
    """Why a GGUF file cannot be read, as part of a sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Array:
    """Where the elements of one array lie, undecoded: token lists have hundreds of thousands."""

    kind: int
    count: int
    begin: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Fields:
    """The metadata by key: scalars as text (``true``, ``32``, ``wan``), arrays as places."""

    scalars: Mapping[str, str]
    arrays: Mapping[str, Array]


class Reader:
    """A place in mapped bytes that never moves past ``limit``; :class:`Damaged` instead."""

    def __init__(self, data: mmap, limit: int) -> None:
        self.data = data
        self.limit = limit
        self.position = 0

    def skip(self, count: int) -> int:
        """Move on; returns the place left."""
        begin = self.position
        if count > self.limit - begin:
            raise Damaged("its header runs past the end of the file, or past 100 MB")
        self.position = begin + count
        return begin

    def integer(self, code: str) -> int:
        """A number of one :mod:`struct` code."""
        return int(struct.unpack_from(f"<{code}", self.data, self.skip(struct.calcsize(code)))[0])

    def count(self, smallest: int, what: str) -> int:
        """A 64-bit count of parts of at least ``smallest`` bytes each, which must fit."""
        count = self.integer("Q")
        if count * smallest > self.limit - self.position:
            raise Damaged(f"it announces {count} {what}, more than it has room for")
        return count

    def name(self) -> str:
        """A string that is a key or the name of a tensor."""
        length = self.integer("Q")
        if length > _LONGEST_NAME:
            raise Damaged(f"it announces a name of {length} bytes")
        begin = self.skip(length)
        try:
            return self.data[begin : begin + length].decode()
        except UnicodeDecodeError as error:
            raise Damaged("it holds a name that is not text") from error


def read_fields(reader: Reader, count: int) -> Fields:
    """The next ``count`` metadata fields."""
    scalars: dict[str, str] = {}
    arrays: dict[str, Array] = {}
    for _ in range(count):
        key = reader.name()
        if key in scalars or key in arrays:
            raise Damaged(f"'{shown(key)}' is told twice")
        kind = reader.integer("I")
        if kind == _ARRAY:
            arrays[key] = _skip_array(reader, _DEEPEST)
        else:
            scalars[key] = _scalar(reader, kind)
    return Fields(scalars=scalars, arrays=arrays)


def _scalar(reader: Reader, kind: int) -> str:
    if kind == _STRING:
        length = reader.integer("Q")
        begin = reader.skip(length)
        return reader.data[begin : begin + length].decode(errors="replace")
    if kind not in _CODES:
        raise Damaged(f"it holds metadata of an unknown kind ({kind})")
    code = _CODES[kind]
    value = struct.unpack_from(f"<{code}", reader.data, reader.skip(struct.calcsize(code)))[0]
    return str(value).lower() if kind == 7 else str(value)


def _skip_array(reader: Reader, depth: int) -> Array:
    kind = reader.integer("I")
    if kind in _CODES:
        size = struct.calcsize(_CODES[kind])
        count = reader.count(size, "numbers")
        return Array(kind=kind, count=count, begin=reader.skip(count * size))
    if kind == _STRING:
        count = reader.count(8, "strings")
        array = Array(kind=kind, count=count, begin=reader.position)
        for _ in range(count):
            reader.skip(reader.integer("Q"))
        return array
    if kind != _ARRAY or not depth:
        raise Damaged(f"it holds an array of an unknown kind ({kind})")
    count = reader.count(4 + 8, "arrays")
    array = Array(kind=kind, count=count, begin=reader.position)
    for _ in range(count):
        _skip_array(reader, depth - 1)
    return array


def numbers(data: mmap, array: Array) -> list[float]:
    """The elements of an array of numbers; :class:`Damaged` for any other."""
    if array.kind not in _CODES:
        raise Damaged("an array of numbers is of another kind")
    return list(struct.unpack_from(f"<{array.count}{_CODES[array.kind]}", data, array.begin))


def raw(data: mmap, array: Array) -> bytes:
    """The bytes of an array of 8-bit numbers; :class:`Damaged` for any other."""
    if array.kind not in (0, 1, 7):
        raise Damaged("an array of bytes is of another kind")
    return data[array.begin : array.begin + array.count]


def strings(data: mmap, array: Array) -> list[bytes]:
    """The elements of an array of strings, undecoded; :class:`Damaged` for any other."""
    if array.kind != _STRING:
        raise Damaged("an array of strings is of another kind")
    found, position = [], array.begin
    for _ in range(array.count):
        (length,) = struct.unpack_from("<Q", data, position)
        found.append(data[position + 8 : position + 8 + length])
        position += 8 + length
    return found
