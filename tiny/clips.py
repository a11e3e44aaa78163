"""Procedural clips: one anti-aliased shape crossing a plain background in 17 frames of 64x64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .captions import Scene

FRAMES, SIZE = 17, 64
PALETTE = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "pink": (255, 170, 205),
    "red": (230, 20, 20),
    "green": (0, 165, 60),
    "blue": (30, 60, 235),
    "yellow": (255, 230, 0),
    "purple": (145, 35, 190),
    "orange": (255, 140, 0),
}
"""8-bit RGB of every colour name."""
STEPS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
"""Unit motion (x, y) of every direction; y grows downwards."""

TRIANGLE = 1.05
"""Half the height of a triangle per radius."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Motion:
    """Where the shape is: radius, middle of its way and length of its way, in pixels."""

    radius: float
    centre: tuple[float, float]
    travel: float


def draw_motion(generator: torch.Generator) -> Motion:
    """A random motion that keeps the shape inside the frame."""
    radius, travel, x, y = torch.rand(4, generator=generator).tolist()
    middle = (SIZE - 1) / 2
    return Motion(
        radius=14.0 + 1.5 * radius,
        centre=(middle + 3.0 * (2 * x - 1), middle + 3.0 * (2 * y - 1)),
        travel=20.0 + 4.0 * travel,
    )


def coverage(shape: str, centres: Tensor, radius: float | Tensor, size: int = SIZE) -> Tensor:
    """Anti-aliased mask (N, size, size) in [0, 1] of a shape at ``centres`` (N, 2) in pixels (x, y)."""
    axis = torch.arange(size, dtype=torch.float32)
    x = axis.view(1, 1, -1) - centres[:, 0].view(-1, 1, 1)
    y = axis.view(1, -1, 1) - centres[:, 1].view(-1, 1, 1)
    radius = torch.as_tensor(radius, dtype=torch.float32).view(-1, 1, 1)
    if shape == "circle":
        distance = (x.square() + y.square()).sqrt() - radius
    elif shape == "square":
        distance = torch.maximum(x.abs(), y.abs()) - 0.92 * radius
    else:  # an isosceles triangle, point up, its centroid at the centre
        half, slope = TRIANGLE * radius, 0.52
        sides = (x.abs() - slope * (y + 4 / 3 * half)) / (1 + slope**2) ** 0.5
        distance = torch.maximum(sides, y - 2 / 3 * half)
    return (0.5 - distance).clamp(0, 1)


def render(scene: Scene, motion: Motion, frames: int = FRAMES) -> Tensor:
    """The clip (3, frames, 64, 64) in [-1, 1], constant speed."""
    step = torch.tensor(STEPS[scene.direction])
    time = torch.linspace(-0.5, 0.5, frames).view(-1, 1)
    centres = torch.tensor(motion.centre) + time * motion.travel * step
    if scene.shape == "triangle":  # its centroid lies below the middle of its height
        centres = centres + torch.tensor([0.0, TRIANGLE * motion.radius / 3])
    mask = coverage(scene.shape, centres, motion.radius)
    back, front = (
        torch.tensor(PALETTE[name]).view(3, 1, 1, 1) / 127.5 - 1
        for name in (scene.background, scene.colour)
    )
    return back + (front - back) * mask
