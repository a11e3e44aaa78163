"""Classifier-free guidance: pure functions ``(cond, uncond) -> velocity``."""

from __future__ import annotations

import math

from torch import Tensor

NO_GUIDANCE_TOLERANCE = 1e-6
"""A scale this close to 1 leaves the conditional velocity as it is."""


def check_scale(scale: float) -> None:
    """Raise ValueError unless the guidance scale is a finite number."""
    if not math.isfinite(scale):
        raise ValueError(
            f"guidance scale={scale} is not finite; use 1 (no guidance) or about 3 to 6"
        )


def needs_uncond(scale: float) -> bool:
    """Whether ``scale`` needs the negative prompt's velocity; scale 1 does not and saves half."""
    check_scale(scale)
    return abs(scale - 1) >= NO_GUIDANCE_TOLERANCE


def cfg(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Guided velocity ``uncond + scale * (cond - uncond)`` in float32, shaped like the inputs.

    Args:
        cond: velocity given the prompt, (B, C, T, H, W), any float dtype.
        uncond: velocity given the negative prompt, same shape.
        scale: 1 is no guidance, 0 ignores the prompt.

    Raises:
        ValueError: the shapes differ or the scale is not finite.
    """
    check_scale(scale)
    if cond.shape != uncond.shape:
        raise ValueError(
            f"velocities of shapes {tuple(cond.shape)} and {tuple(uncond.shape)} cannot be "
            "guided; give both prompts the same batch"
        )
    base = uncond.float()
    return base + scale * (cond.float() - base)
