"""Small files that lie beside weights: an index of shards, a configuration, a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from .paths import read_head, shown

DOCUMENT_LIMIT = 64 * 1024 * 1024
"""Bytes of such a file; the largest published, a tokenizer, has 5 MB."""


def read_small(path: Path) -> bytes:
    """The whole of a small file.

    Raises:
        OSError: as :func:`wan.files.read_header`.
        ValueError: larger than any file of its kind.
    """
    read_head(path)  # what is no regular file would block, or never end
    size = path.stat().st_size
    if size > DOCUMENT_LIMIT:
        raise ValueError(
            f"{shown(path)} has {size} bytes, more than any file of its kind; download it again"
        )
    return path.read_bytes()


def read_json(path: Path, what: str) -> object:
    """The content of a small JSON file.

    Args:
        path: the file.
        what: what it should be, for the sentence: ``an index of shards``.

    Raises:
        OSError: as :func:`wan.files.read_header`.
        ValueError: not JSON, or larger than any file of its kind.
    """
    text = read_small(path)
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is not {what}; download it again") from error
    return content
