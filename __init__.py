"""ComfyUI-WanExperts: Wan2.2's two experts as one trajectory inside ComfyUI."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> ComfyExtension:
    """Return the extension object that ComfyUI registers; nothing heavy is imported before this call."""
    from .nodes import WanExpertsExtension

    return WanExpertsExtension()
