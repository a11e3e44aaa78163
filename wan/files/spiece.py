"""A sentencepiece model written from its parts, as the protocol buffer its reader takes."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from .gguf_fields import Damaged

_UNKNOWN, _BYTE = 2, 6
_KINDS = range(1, 7)
_UNIGRAM = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Pieces:
    """A unigram vocabulary and how text is prepared for it."""

    texts: Sequence[bytes]
    """UTF-8, by id."""
    scores: Sequence[float]
    kinds: Sequence[int]
    """1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte."""
    unknown: int | None
    """Ids of the special pieces; None where there is none."""
    begin: int | None
    end: int | None
    padding: int | None
    add_dummy_prefix: bool
    """A space is put before the text."""
    remove_extra_whitespaces: bool
    charsmap: bytes
    """The compiled normalisation; empty for none."""


def sentencepiece_model(pieces: Pieces) -> bytes:
    """The serialised model, for ``SentencePieceProcessor.LoadFromSerializedProto``.

    Raises:
        Damaged: a kind or id that no sentencepiece model has, or no unknown piece.
    """
    if not all(kind in _KINDS for kind in pieces.kinds):
        raise Damaged("its tokenizer has tokens of an unknown type")
    unknown = pieces.kinds.index(_UNKNOWN) if _UNKNOWN in pieces.kinds else pieces.unknown
    if unknown is None:
        raise Damaged("its tokenizer has no unknown token")
    trainer = _whole(3, _UNIGRAM) + _whole(4, len(pieces.texts))
    trainer += _whole(35, _BYTE in pieces.kinds)
    specials = (unknown, pieces.begin, pieces.end, pieces.padding)
    # The reader finds special pieces by their text; the ids beside are for people.
    for offset, special in enumerate(specials):
        trainer += _whole(40 + offset, -1 if special is None else special)
        if special is not None:
            trainer += _bytes(45 + offset, _text(pieces, special))
    normalizer = _bytes(2, pieces.charsmap) + _whole(3, pieces.add_dummy_prefix)
    normalizer += _whole(4, pieces.remove_extra_whitespaces) + _whole(5, True)
    table = b"".join(
        _bytes(1, _bytes(1, text) + _float(2, score) + _whole(3, kind))
        for text, score, kind in zip(pieces.texts, pieces.scores, pieces.kinds, strict=True)
    )
    return table + _bytes(2, trainer) + _bytes(3, normalizer)


def _text(pieces: Pieces, index: int) -> bytes:
    if index >= len(pieces.texts):
        raise Damaged(f"its tokenizer has no token {index}")
    return pieces.texts[index]


def _varint(value: int) -> bytes:
    """Seven bits at a time, the lowest first; negative numbers as 64-bit two's complement."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _whole(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    try:
        return _varint(field << 3 | 5) + struct.pack("<f", value)
    except OverflowError as error:
        raise Damaged("its tokenizer has a score beyond float32") from error
