"""Wan2.2 text-to-video in pure PyTorch: two experts, one trajectory. No ComfyUI import anywhere."""

__version__ = "0.1.0"
