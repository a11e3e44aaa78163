"""GGUF: a binary header of metadata and tensor places, then the bytes; tensors are mapped, not read.

The header is walked here, every count and offset checked against the file: the ``gguf`` package's own
reader trusts them, and takes 12 s and 1.1 GB for the token list of an umT5 file. The package says
which tensor types there are and how large their blocks are.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .gguf_fields import Damaged, Fields, Reader, numbers, raw, read_fields, strings
from .header import DTYPES, Header, TensorInfo, asked, possible
from .paths import shown
from .spiece import Pieces, sentencepiece_model

HEADER_LIMIT = 100 * 1024 * 1024
VERSIONS = (2, 3)
MOST_AXES = 8
DEFAULT_ALIGNMENT = 32
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
_SMALLEST_FIELD = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 4 + 8

Blocks = Mapping[int, tuple[str, int, int]]
"""Tensor types by number: name, weights per block, bytes per block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """One tensor of the file."""

    info: TensorInfo
    begin: int
    """First byte, from the start of the file."""
    nbytes: int
    rows: int
    """Runs of whole blocks that the bytes divide into."""


def read_header(path: Path) -> Header:
    """Tensors and scalar metadata of one GGUF file; arrays such as token lists are passed over.

    Raises:
        ValueError: damaged, truncated, one part of several, in a type that is not known here, or the
            gguf package is not installed.
    """
    fields, tensors = _read(path)
    infos = {
        name: replace(stored.info, begin=stored.begin, nbytes=stored.nbytes)
        for name, stored in tensors.items()
    }
    return Header(container="gguf", tensors=infos, metadata=fields.scalars)


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Tensor]:
    """Tensors by stored name, mapped from disk: pages are read when they are first used.

    Plain types come typed and shaped, packed ones as uint8 ``(rows, bytes per row)``. A row is the last
    axis of the shape, or of the stored shape where the last axis is not whole blocks.
    """
    _, tensors = _read(path)
    # Copy on write, since torch wants memory it may write to; nothing ever reaches the file.
    with path.open("rb") as handle:
        mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
    return {name: _tensor(mapped, tensors[name]) for name in asked(path, names, tensors)}


def _tensor(mapped: mmap.mmap, stored: _Stored) -> Tensor:
    plain = DTYPES.get(stored.info.dtype)
    dtype = plain or torch.uint8
    if not stored.nbytes:
        return torch.empty(stored.info.shape, dtype=dtype)
    count = stored.nbytes // dtype.itemsize
    flat = torch.frombuffer(mapped, dtype=dtype, count=count, offset=stored.begin)
    return flat.view(stored.info.shape if plain else (stored.rows, -1))


def read_tokenizer(path: Path) -> bytes | None:
    """The serialised sentencepiece model of a T5 tokenizer in the metadata, or None.

    The file must be a GGUF file, see :func:`wan.files.read_header`.

    Raises:
        ValueError: the token list or the file is damaged.
    """
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            reader, _ = _start(path, data)
            return _tokenizer(data, read_fields(reader, reader.count(_SMALLEST_FIELD, "fields")))
        except Damaged as error:
            raise _damaged(path, error) from error


def _tokenizer(data: mmap.mmap, fields: Fields) -> bytes | None:
    scalars = {key.removeprefix("tokenizer.ggml."): v for key, v in fields.scalars.items()}
    arrays = {key.removeprefix("tokenizer.ggml."): v for key, v in fields.arrays.items()}
    if scalars.get("model") != "t5":
        return None
    if not {"tokens", "scores", "token_type"} <= arrays.keys():
        raise Damaged("its tokenizer lacks tokens, scores or token types")
    if len({arrays[name].count for name in ("tokens", "scores", "token_type")}) > 1:
        raise Damaged("its tokenizer has not one score and one type for each token")

    def special(name: str) -> int | None:
        number = scalars.get(f"{name}_token_id", "")
        return int(number) if number.isdecimal() else None

    charsmap = arrays.get("precompiled_charsmap")
    return sentencepiece_model(
        Pieces(
            texts=strings(data, arrays["tokens"]),
            scores=numbers(data, arrays["scores"]),
            kinds=[int(kind) for kind in numbers(data, arrays["token_type"])],
            unknown=special("unknown"),
            begin=special("bos"),
            end=special("eos"),
            padding=special("padding"),
            add_dummy_prefix=scalars.get("add_space_prefix") != "false",
            remove_extra_whitespaces=scalars.get("remove_extra_whitespaces") != "false",
            charsmap=raw(data, charsmap) if charsmap else b"",
        )
    )


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{shown(path)} is a damaged GGUF file ({why}); download it again")


def _blocks(path: Path) -> Blocks:
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise ValueError(
            f"{shown(path)} is a GGUF file, which needs the gguf package; run `pip install gguf`"
        ) from error
    return {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


def _start(path: Path, data: mmap.mmap) -> tuple[Reader, int]:
    """A reader that stands before the count of fields, and the count of tensors."""
    reader = Reader(data, min(len(data), HEADER_LIMIT))
    reader.skip(4)
    version = reader.integer("I")
    if version not in VERSIONS:
        told = "big-endian" if version & 0xFFFF == 0 else f"version {version}"
        raise ValueError(
            f"{shown(path)} is a GGUF file ({told}); use a little-endian one of version 2 or 3"
        )
    return reader, reader.count(_SMALLEST_TENSOR, "tensors")


def _read(path: Path) -> tuple[Fields, dict[str, _Stored]]:
    """The metadata, and where the tensors lie."""
    blocks = _blocks(path)
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            reader, count = _start(path, data)
            fields = read_fields(reader, reader.count(_SMALLEST_FIELD, "fields"))
            parts = fields.scalars.get("split.count", "1")
            if parts not in ("0", "1"):
                raise ValueError(
                    f"{shown(path)} is one of {shown(parts)} parts; join them with `gguf-split --merge`"
                )
            listed = [_listed(path, reader, fields, blocks) for _ in range(count)]
            tensors = _placed(path, listed, _data_begin(reader, fields), len(data))
        except Damaged as error:
            raise _damaged(path, error) from error
    return fields, tensors


def _listed(path: Path, reader: Reader, fields: Fields, blocks: Blocks) -> _Stored:
    """The next tensor of the list; its place still counts from the first byte of tensor data."""
    name = reader.name()
    axes = reader.integer("I")
    if axes > MOST_AXES:
        raise Damaged(f"'{shown(name)}' has {axes} axes")
    stored = tuple(reversed([reader.integer("Q") for _ in range(axes)]))
    kind, begin = reader.integer("I"), reader.integer("Q")
    if kind not in blocks:
        raise ValueError(
            f"{shown(path)} stores '{shown(name)}' in GGUF type {kind}, which the installed gguf "
            "package does not know; run `pip install -U gguf` or use another quantisation"
        )
    dtype, weights, nbytes = blocks[kind]
    numel = math.prod(stored)
    if not possible(stored) or (stored[-1] if stored else 1) % weights:
        raise Damaged(f"'{shown(name)}' cannot be {dtype} of shape {stored}")
    shape = _logical_shape(reader, fields, name, stored)
    rowwise = shape if shape and shape[-1] % weights == 0 else stored
    return _Stored(
        info=TensorInfo(path, name, dtype, shape),
        begin=begin,
        nbytes=numel // weights * nbytes,
        rows=math.prod(rowwise[:-1]),
    )


def _logical_shape(
    reader: Reader, fields: Fields, name: str, stored: tuple[int, ...]
) -> tuple[int, ...]:
    """The shape before a writer folded it into axes GGUF tools take, if it says so."""
    array = fields.arrays.get(ORIGINAL_SHAPE + name)
    if array is None:
        return stored
    if array.count > MOST_AXES:
        raise Damaged(f"the shape of '{shown(name)}' has {array.count} axes")
    shape = tuple(int(n) for n in numbers(reader.data, array))
    if not possible(shape) or math.prod(shape) != math.prod(stored):
        raise Damaged(f"'{shown(name)}' cannot be both of shape {shape} and {stored}")
    return shape


def _data_begin(reader: Reader, fields: Fields) -> int:
    """First byte of tensor data: the end of the header, rounded up to the alignment."""
    told = fields.scalars.get("general.alignment", str(DEFAULT_ALIGNMENT))
    alignment = int(told) if told.isdecimal() and len(told) < 20 else 0
    if not alignment or alignment & (alignment - 1):
        raise Damaged(f"its alignment is {shown(told)}, not a power of two")
    return -(-reader.position // alignment) * alignment


def _placed(path: Path, listed: list[_Stored], begin: int, size: int) -> dict[str, _Stored]:
    """Tensors by name with places in the file, after a check that each has its own."""
    tensors: dict[str, _Stored] = {}
    end = begin
    for stored in sorted(listed, key=lambda one: one.begin):
        name = stored.info.name
        placed = replace(stored, begin=begin + stored.begin)
        item = DTYPES.get(stored.info.dtype, torch.uint8).itemsize
        if name in tensors:
            raise Damaged(f"'{shown(name)}' is stored twice")
        if stored.nbytes and (placed.begin < end or placed.begin % item):
            raise Damaged(f"'{shown(name)}' lies at a place it cannot have")
        end = max(end, placed.begin + stored.nbytes)
        tensors[name] = placed
    if end > size:
        raise ValueError(f"{shown(path)} is truncated: {size} of {end} bytes; download it again")
    return {stored.info.name: tensors[stored.info.name] for stored in listed}
