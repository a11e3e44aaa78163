"""Every ComfyUI on this machine that the tests run against."""

from __future__ import annotations

from pathlib import Path

from wanexperts import demo


def _checkouts() -> list[Path]:
    older = sorted((Path.home() / "comfy").glob("ComfyUI-*"))
    found = [*demo.find_checkouts(), *(p.resolve() for p in older if (p / "main.py").is_file())]
    return list(dict.fromkeys(found))


CHECKOUTS = _checkouts()
"""Best first."""
