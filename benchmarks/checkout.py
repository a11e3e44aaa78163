"""A ComfyUI checkout inside this process, or inside one that a benchmark starts."""

from __future__ import annotations

import os
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HELPERS = (ROOT / "tests" / "host_env", ROOT / ".test" / "host-site")
"""What lets ComfyUI start on a machine without a GPU, see tests/host_env; harmless elsewhere."""


def enter(checkout: Path | None, *flags: str) -> None:
    """Make a ComfyUI checkout importable with these flags of its command line; on the CPU without any."""
    if checkout is None:
        raise ValueError("name a ComfyUI folder")
    if find_spec("torchvision") is None:
        sys.path[:0] = map(str, HELPERS)
        runpy.run_path(str(HELPERS[0] / "sitecustomize.py"))
    sys.path.insert(0, str(checkout))
    sys.argv = ["main.py", *(flags or ("--cpu",))]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # parses now, whatever becomes of sys.argv


def environment(checkout: Path | None) -> dict[str, str]:
    """Environment of a process that enters a checkout, or none."""
    helpers = HELPERS if checkout else ()
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, helpers))}
