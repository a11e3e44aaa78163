"""A ComfyUI checkout inside this process, or inside one that a benchmark starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def enter(checkout: Path | None, *flags: str) -> None:
    """Make a ComfyUI checkout importable with these flags of its command line; on the CPU without any."""
    if checkout is None:
        raise ValueError("name a ComfyUI folder")
    sys.path.insert(0, str(checkout))
    sys.argv = ["main.py", *(flags or ("--cpu",))]
    import comfy.options

    comfy.options.enable_args_parsing()


def environment(checkout: Path | None) -> dict[str, str]:
    """Environment of a process that enters a checkout, or none.

    It has what lets ComfyUI start on a machine without a GPU, see tests/host_env; harmless elsewhere.
    """
    helpers = (ROOT / "tests" / "host_env", ROOT / ".test" / "host-site") if checkout else ()
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, helpers))}
