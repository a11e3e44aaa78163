"""Classifier-free guidance: how strong at which noise level, and the formula. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

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


@dataclass(frozen=True, slots=True)
class Guidance:
    """A guidance scale over the noise level: a constant, or a curve of straight lines.

    Attributes:
        points: ``(sigma, scale)`` from noise to clean, sigma strictly descending in [0, 1]; between
            two points the scale is linear in sigma, outside it is that of the nearest point.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a guidance curve without points has no scale; give one, such as 1:4")
        for sigma, scale in self.points:
            check_scale(scale)
            if not 0 <= sigma <= 1:
                raise ValueError(
                    f"guidance point {_point(sigma, scale)} is not at a noise level in [0, 1]; "
                    "write sigma:scale, such as 0.9:3.5"
                )
        if any(after >= before for (before, _), (after, _) in pairwise(self.points)):
            raise ValueError(
                f"guidance points {self} do not descend in sigma; give each noise level once, "
                "from noise (1) down to clean (0)"
            )

    @classmethod
    def constant(cls, scale: float) -> Guidance:
        """One ``scale`` at all noise levels."""
        return cls(((1.0, scale),))

    @property
    def is_constant(self) -> bool:
        """Whether the scale is the same everywhere."""
        return len({scale for _, scale in self.points}) == 1

    def at(self, sigma: float) -> float:
        """The scale at noise level ``sigma``."""
        (above, scale), *others = self.points
        if sigma >= above:
            return scale
        for below, lower in others:
            if sigma >= below:
                share = (above - sigma) / (above - below)
                return scale + share * (lower - scale)
            above, scale = below, lower
        return scale

    def __str__(self) -> str:
        """As :func:`parse_guidance` reads it: ``4``, or ``1:4, 0.9:3.5``."""
        if self.is_constant:
            return _number(self.points[0][1])
        return ", ".join(_point(*point) for point in self.points)


def parse_guidance(text: str) -> Guidance:
    """Read ``4`` (a constant) or ``1:4, 0.9:3.5, 0.5:1`` (a curve ``sigma:scale``, in any order).

    Raises:
        ValueError: anything else, a noise level outside [0, 1] or given twice; one sentence says what.
    """
    try:
        parts = [[float(number) for number in part.split(":")] for part in text.split(",")]
    except ValueError:
        parts = []
    if len(parts) == 1 and len(parts[0]) == 1:
        return Guidance.constant(parts[0][0])
    if not parts or any(len(part) != 2 for part in parts):
        raise ValueError(
            f"guidance {text!r} is neither a number nor a curve; "
            "write 4, or pairs sigma:scale such as 1:4, 0.9:3.5, 0.5:1"
        )
    return Guidance(tuple(sorted(((sigma, scale) for sigma, scale in parts), reverse=True)))


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _point(sigma: float, scale: float) -> str:
    return f"{_number(sigma)}:{_number(scale)}"
