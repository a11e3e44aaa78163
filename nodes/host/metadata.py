"""What ComfyUI wants to find again in a saved file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfyui_version
from comfy.cli_args import args

from ...wan import __version__


def container_metadata(hidden: Any, manifest: Mapping[str, object]) -> dict[str, Any]:
    """Tags of a file: the graph that made it, and how it was written under ``wan``.

    Args:
        hidden: the node's, with ``prompt`` and ``extra_pnginfo``.
        manifest: facts about the file; the versions are added.

    Returns:
        Nothing if the user runs with ``--disable-metadata``.
    """
    if args.disable_metadata:
        return {}
    tags = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        tags["prompt"] = hidden.prompt
    versions = {"version": __version__, "comfyui": comfyui_version.__version__}
    tags["wan"] = {**versions, **manifest}
    return tags
