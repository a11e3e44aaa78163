"""The manifest inside a file: an mp4, a PNG, or saved latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import av

from ..files import read_header, shown
from ..files.paths import read_head
from ..video import PNG_SIGNATURE, read_png_tags
from .record import Manifest, from_json

TAG, KEY = "wan", "manifest"
"""Where it lies: in the metadata ``wan``, a JSON table, under ``manifest``."""
_VIDEO = (b"ftyp",)


def read_manifest(path: Path) -> Manifest:
    """What a file says of the run that made it.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: another kind of file, or it holds no record.
    """
    head = read_head(path)
    if head[4:8] in _VIDEO:
        tags = _video_tags(path)
    elif head.startswith(PNG_SIGNATURE):
        tags = read_png_tags(path)
    else:
        tags = _header_tags(path)
    return find_manifest(tags, shown(path.name))


def find_manifest(tags: Mapping[str, str], name: str) -> Manifest:
    """The manifest among the metadata of a file called ``name``; ValueError if there is none."""
    try:
        told = json.loads(tags.get(TAG, "{}"))
    except ValueError:
        told = {}
    found = told.get(KEY) if isinstance(told, dict) else None
    if found is None:
        raise ValueError(
            f"{name} holds no record of its run; use an mp4, a PNG or latents that this version of "
            "ComfyUI-WanExperts saved with metadata"
        )
    return from_json(found)


def _header_tags(path: Path) -> Mapping[str, str]:
    try:
        return read_header(path).metadata
    except ValueError as error:
        raise ValueError(
            f"{shown(path.name)} is neither an mp4, a PNG nor saved latents; use a file this pack wrote"
        ) from error


def _video_tags(path: Path) -> Mapping[str, str]:
    try:
        with av.open(str(path)) as container:
            return dict(container.metadata)
    except av.FFmpegError as error:
        raise ValueError(f"{shown(path.name)} is a damaged mp4; use another file") from error
