"""What all nodes check alike: the limits of their widgets, and problems told as one sentence.

ComfyUI leaves an input that a node validates itself to that node, and knows nothing of values that
come over a link: the limits are written here once, for the widget and for the check.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from comfy_api.latest import io

from .host import compat

RARE = compat.accepted(io.Float.Input, {"advanced": True})
"""Options of an input that few people change: folded away by a ComfyUI that can."""


class Limits(NamedTuple):
    """Smallest and largest legal value, the widget's step (None: the frontend's own), and whether
    few people change it.
    """

    low: float
    high: float
    step: float | None = None
    rare: bool = False


ALLOW_MISMATCH = (
    "Use the files although their names, headers or weights say that they do not belong together."
)
"""Tooltip of the input of that name."""

LIMITS = {
    "width": Limits(16, 8192, 16),
    "height": Limits(16, 8192, 16),
    "frames": Limits(1, 4097, 4),
    "batch_size": Limits(1, 64),
    "noise_seed": Limits(0, 0xFFFFFFFFFFFFFFFF),
    "steps": Limits(1, 1000),
    "cfg_high_noise": Limits(0.0, 100.0, 0.1),
    "cfg_low_noise": Limits(0.0, 100.0, 0.1),
    "sigma_shift": Limits(0.01, 100.0, 0.01),
    "boundary": Limits(0.0, 1.0, 0.001, rare=True),
    "switch_step": Limits(0, 1000, rare=True),
    "switch_value": Limits(0.0, 1000.0, 0.0001, rare=True),
    "cfg_motion": Limits(0.0, 100.0, 0.1, rare=True),
    "motion_until": Limits(0.0, 1000.0, 0.1, rare=True),
    "cfg": Limits(0.0, 100.0, 0.1),
    "until_value": Limits(0.0, 1000.0, 0.0001),
    "strength_high_noise": Limits(-100.0, 100.0, 0.01),
    "strength_low_noise": Limits(-100.0, 100.0, 0.01),
    "fps": Limits(0.1, 1000.0, 0.01),
}


def widget(name: str) -> dict[str, Any]:
    """``min``, ``max`` and ``step`` of the widget ``name``, and whether it is folded away."""
    limits = LIMITS[name]
    numbers = {"min": limits.low, "max": limits.high, "step": limits.step}
    return numbers | (RARE if limits.rare else {})


def check_limits(**given: float) -> None:
    """Raise ValueError for the first value outside the limits of its widget."""
    for name, value in given.items():
        low, high, *_ = LIMITS[name]
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{name}={value} is not within {low:g} to {high:g}; use one that is")


def problem(check: Callable[..., Any], *values: Any) -> bool | str:
    """The answer of ``validate_inputs``: True, or what ``check(*values)`` has to say.

    A linked input is None at that time: then nothing is checked before the run.
    """
    if any(value is None for value in values):
        return True
    try:
        check(*values)
    except (ValueError, OSError, ImportError) as error:
        return str(error)
    return True


def both(first: bool | str, second: bool | str) -> bool | str:
    """The first of two answers of :func:`problem` that is one."""
    return second if first is True else first
