"""ComfyUI-WanExperts: Wan2.2's two experts as one trajectory inside ComfyUI."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension object that ComfyUI registers; nothing heavy is imported before this call."""
    try:
        from .nodes import WanExpertsExtension
    except ImportError:
        # ComfyUI itself shows one line without saying where; it then goes on without this pack.
        logging.getLogger(__name__).exception(
            "WanExperts cannot start; install what is missing: pip install -r requirements.txt"
        )
        raise
    return WanExpertsExtension()
