"""Placeholder: GGUF."""

from __future__ import annotations

from pathlib import Path


def read_tokenizer(path: Path) -> bytes | None:
    """None: not read yet."""
    return None
