"""What ComfyUI wants to find again in a saved file."""

from __future__ import annotations

from typing import Any

from comfy.cli_args import args


def container_metadata(hidden: Any) -> dict[str, Any]:
    """Tags of an mp4: the graph that made it, unless the user runs with ``--disable-metadata``."""
    if args.disable_metadata:
        return {}
    tags = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        tags["prompt"] = hidden.prompt
    return tags
