"""What a file's or folder's name says: which expert it is for, which release it belongs to."""

from __future__ import annotations

import re

HIGH, LOW = "high_noise", "low_noise"
ROLES = (HIGH, LOW)
_NOT_NOISE = {
    "light", "lighting", "key", "res", "resolution", "quality", "poly", "detail", "details",
    "contrast", "angle", "vram", "rank", "fps", "motion", "saturation", "fidelity", "end", "def",
    "definition", "speed", "ram", "step", "steps", "cfg", "mem", "memory", "precision", "dynamic",
}  # fmt: skip
"""Words after ``high`` or ``low`` that make it speak of something else."""


def words(name: str) -> list[str]:
    """Lower-case words of a name; ``HighNoise`` and ``high_noise`` are the same two."""
    return re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower())


def role_of(name: str) -> str | None:
    """``high_noise`` or ``low_noise`` if the name says one of them and not the other, else None."""
    found: set[str] = set()
    spelled = words(name)
    for word, after in zip(spelled, [*spelled[1:], ""], strict=True):
        for role in ROLES:
            short = role.partition("_")[0]
            if word == f"{short}noise" or (word == short and after not in _NOT_NOISE):
                found.add(role)
    return found.pop() if len(found) == 1 else None


def release_of(name: str) -> str | None:
    """``Wan2.1`` or ``Wan2.2`` if the name says one of them, else None."""
    found = set(re.findall(r"wan[ _.-]?v?2[._-]?([12])(?!\d)", name.lower()))
    return f"Wan2.{found.pop()}" if len(found) == 1 else None


def is_distilled(name: str) -> bool:
    """Whether the name says that few steps without guidance are enough."""
    return bool(re.search(r"lightning|lightx2v|distill|4[ _-]?steps?|causvid|dmd", name.lower()))
