"""What the registry's archive holds, as git and ``.comfyignore`` say."""

from __future__ import annotations

import subprocess

import pytest
from wanexperts.comfy_server import ROOT


def tracked(*options: str) -> set[str]:
    """Names that ``git ls-files`` tells of the index."""
    told = subprocess.run(
        ["git", "ls-files", "-z", "--cached", *options], cwd=ROOT, capture_output=True, check=True
    )
    return set(filter(None, told.stdout.decode().split("\0")))


def archived() -> set[str]:
    """What the registry packs: tracked files, less those of ``.comfyignore``."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what is tracked is not known; run it in a clone")
    return tracked() - tracked("--ignored", "--exclude-from=.comfyignore")
