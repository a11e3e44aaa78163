"""Kinds of output by the names people choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ..config import EncodingConfig
from .clip import Clip
from .mp4 import VideoWriter
from .sequence import SequenceWriter
from .still import StillWriter
from .writer import FrameWriter

MP4_FORMATS: Mapping[str, EncodingConfig] = {
    "h264-mp4": EncodingConfig(),
    "h265-mp4": EncodingConfig(codec="libx265"),
    "h265-10bit-mp4": EncodingConfig(codec="libx265", pixel_format="yuv420p10le"),
}
SEQUENCE_FORMATS: Mapping[str, int] = {"png-sequence": 8, "png16-sequence": 16}
STILL_FORMATS: Mapping[str, int] = {"png": 8, "png16": 16}
"""One file for a clip of one frame."""
FORMATS = (*MP4_FORMATS, *SEQUENCE_FORMATS)
"""Of clips."""


def open_writer(
    path: str | Path,
    clip: Clip,
    *,
    format: str = FORMATS[0],
    crf: int = EncodingConfig().crf,
    keep_partial: bool = False,
) -> FrameWriter:
    """The writer of one of :data:`FORMATS` or :data:`STILL_FORMATS`.

    ``path`` is an mp4, the folder of a sequence or the PNG file of a still.

    Raises:
        ValueError: an unknown format, or as the writers do; PNG files ignore ``crf``.
    """
    if format in SEQUENCE_FORMATS:
        bits = SEQUENCE_FORMATS[format]
        return SequenceWriter(path, clip, bits=bits, keep_partial=keep_partial)
    if format in STILL_FORMATS:
        return StillWriter(path, clip, bits=STILL_FORMATS[format])
    if format not in MP4_FORMATS:
        known = ", ".join([*FORMATS, *STILL_FORMATS])
        raise ValueError(f"format={format!r} is not one of {known}; use one that is")
    encoding = replace(MP4_FORMATS[format], crf=crf)
    return VideoWriter(path, clip, encoding=encoding, keep_partial=keep_partial)
