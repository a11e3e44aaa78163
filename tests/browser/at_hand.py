"""What the browser tests need, and whether it is there."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

from wanexperts.comfy_server import ROOT

SITES = ROOT / ".test" / "frontend"
"""One folder per version, filled by ``make``."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
PIN = re.compile(r"^comfyui-frontend-package==(\S+)", re.MULTILINE)


def chromium() -> str | None:
    """The browser: ``CHROMIUM`` of the environment, or one of the system."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


def frontends() -> dict[str, Path]:
    """Folders to serve by version."""
    found = sorted(SITES.glob("*/comfyui_frontend_package/static"))
    return {path.parents[1].name: path for path in found}


def frontend_of(checkout: Path) -> Path:
    """The one this ComfyUI asks for; where that is not at hand, the newest."""
    found = frontends()
    asked = PIN.search((checkout / "requirements.txt").read_text(encoding="utf-8"))
    newest = max(found, key=lambda version: tuple(map(int, version.split("."))))
    return found.get(asked[1] if asked else newest, found[newest])


def missing() -> str:
    """What keeps the browser tests from running, and the way out; empty if nothing does."""
    if chromium() is None:
        return "NO CHROMIUM FOUND, the browser tests were left out; apt-get install chromium, or set CHROMIUM"
    if importlib.util.find_spec("playwright") is None or not frontends():
        return "NO FRONTEND FOUND, the browser tests were left out; run `make test` to fetch it"
    return ""
