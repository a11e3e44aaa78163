"""Placeholder: names of diffusers."""

from __future__ import annotations


def official_key(name: str) -> str | None:
    """None: no table yet."""
    return None


def diffusers_key(name: str) -> str | None:
    """None: no table yet."""
    return None
