"""PNG: one image, with text that ComfyUI and its frontend read."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import av
import torch
from torch import Tensor

from .files import whole_file
from .frames import Pixels, check_frames, pixels

FORMATS = {8: "rgb24", 16: "rgb48be"}
"""FFmpeg's name of a PNG's pixels, by the bits of a sample."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COMPRESSION = "3"
"""Of zlib: about as small as the default, see benchmarks/decode_to_file.py, in half the time."""
_HEADER_END = 33
"""Bytes of the signature and the first chunk of every PNG."""


class PngEncoder:
    """Images of one size to the bytes of PNG files; several are under way in threads of their own."""

    def __init__(self, *, width: int, height: int, bits: int, tags: Mapping[str, str]) -> None:
        """For images of ``bits`` (8 or 16) with ``tags`` in every file."""
        encoder = av.CodecContext.create("png", "w")
        assert isinstance(encoder, av.VideoCodecContext)
        encoder.width, encoder.height = width, height
        encoder.pix_fmt, encoder.time_base = FORMATS[bits], Fraction(1)
        encoder.options = {"compression_level": _COMPRESSION}
        encoder.thread_type = "FRAME"
        self._encoder, self._format = encoder, FORMATS[bits]
        self._text = b"".join(_text_chunk(key, value) for key, value in tags.items())

    def encode(self, image: Pixels | None) -> Iterator[bytes]:
        """Take one image (H, W, 3), None after the last; yields files as they get ready, in order."""
        frame = None if image is None else av.VideoFrame.from_ndarray(image, format=self._format)
        for packet in self._encoder.encode(frame):
            data = bytes(packet)
            yield data[:_HEADER_END] + self._text + data[_HEADER_END:]


def save_png(path: str | Path, image: Tensor) -> None:
    """Write one image (H, W, 3) uint8; raises ValueError for other inputs, OSError if it cannot."""
    check_frames(image[None] if image.ndim == 3 else image)
    height, width = image.shape[:2]
    encoder = PngEncoder(width=width, height=height, bits=8, tags={})
    data = b"".join([*encoder.encode(pixels(image)), *encoder.encode(None)])
    with whole_file(Path(path)) as hidden:
        hidden.write_bytes(data)


def read_png(path: str | Path) -> Tensor:
    """The image (H, W, 3) of a colour PNG: uint8, or uint16 of one of 16 bits; OSError if it cannot."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        deep = frame.format.components[0].bits > 8
        return torch.from_numpy(frame.to_ndarray(format="rgb48le" if deep else "rgb24"))


def read_png_tags(path: str | Path) -> dict[str, str]:
    """Text of a PNG that lies before its pixels, by key; compressed text is left out.

    Raises:
        OSError: it cannot be read.
        ValueError: no PNG, or one that is cut off.
    """
    tags: dict[str, str] = {}
    with Path(path).open("rb") as file:
        if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
            raise ValueError(f"{path} is no PNG; use another file")
        while (kind := (head := file.read(8))[4:]) not in (b"IDAT", b"IEND"):
            if len(head) < 8:
                raise ValueError(f"{path} is a PNG that is cut off; use a whole one")
            size = int.from_bytes(head[:4], "big")
            if kind in (b"tEXt", b"iTXt"):
                tags |= _text_of(kind, file.read(size))
            else:
                file.seek(size, os.SEEK_CUR)
            file.seek(4, os.SEEK_CUR)  # the checksum
    return tags


def _text_of(kind: bytes, body: bytes) -> dict[str, str]:
    """Key and text of a chunk; nothing if it is compressed."""
    key, _, text = body.partition(b"\0")
    name = key.decode("latin-1")
    if kind == b"tEXt":
        return {name: text.decode("latin-1")}
    if text[:1] != b"\0":
        return {}
    return {name: text[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")}


def _text_chunk(key: str, value: str) -> bytes:
    """A text chunk: Latin-1 as ``tEXt``, anything else as uncompressed UTF-8 ``iTXt``."""
    name = key.encode("latin-1", "replace")[:79]
    try:
        kind, body = b"tEXt", name + b"\0" + value.encode("latin-1")
    except UnicodeEncodeError:
        kind, body = b"iTXt", name + b"\0\0\0\0\0" + value.encode()
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
