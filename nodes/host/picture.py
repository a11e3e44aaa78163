"""A run as a picture: noise level over step, each stage in its colour, the switches as lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...wan.plan import RunPlan

WIDTH, HEIGHT = 1200, 620
SCALE = 2
"""Everything is drawn twice as large and made smaller: PIL's lines have no soft edges."""

LEFT, TOP, RIGHT, BOTTOM = 104, 128, WIDTH - 36, HEIGHT - 76
PAPER, INK, DIM, GRID = "#17191d", "#eef0f3", "#9aa2ad", "#30353d"
COLOURS = ("#f5a04c", "#4fa8f7", "#4fd1a1", "#d58bf0", "#f0d354", "#f27d8e")
"""Of the stages in order; told apart also by those who do not see red or green."""

TICKS_AT_MOST = 20


@dataclass(frozen=True, slots=True)
class _Canvas:
    """A drawing in the units of the finished picture."""

    draw: Any

    def line(self, x0: float, y0: float, x1: float, y1: float, colour: str, width: float) -> None:
        points = [SCALE * value for value in (x0, y0, x1, y1)]
        self.draw.line(points, fill=colour, width=round(SCALE * width))

    def dashes(self, x0: float, y: float, x1: float, colour: str) -> None:
        for x in np.arange(x0, x1, 14):
            self.line(x, y, min(x + 8, x1), y, colour, 1.5)

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        box = [SCALE * value for value in (x - radius, y - radius, x + radius, y + radius)]
        self.draw.ellipse(box, fill=colour, outline=PAPER, width=SCALE)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: str) -> None:
        self.draw.rectangle([SCALE * value for value in (x0, y0, x1, y1)], fill=colour)

    def text(self, x: float, y: float, words: str, colour: str, size: int, anchor: str) -> None:
        place = SCALE * x, SCALE * y
        self.draw.text(place, words, fill=colour, font=_font(SCALE * size), anchor=anchor)


def draw_plan(plan: RunPlan) -> Image.Image:
    """The plan as an RGB picture of ``WIDTH`` x ``HEIGHT`` pixels."""
    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), PAPER)
    canvas = _Canvas(ImageDraw.Draw(image))
    _bands(canvas, plan)
    _axes(canvas, plan)
    _switches(canvas, plan)
    _curve(canvas, plan)
    _heading(canvas, plan)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def as_image(picture: Image.Image) -> Tensor:
    """An IMAGE (1, H, W, 3) float32 in [0, 1] of a picture."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255)[None]


def _x(plan: RunPlan, step: float) -> float:
    return LEFT + (RIGHT - LEFT) * step / plan.schedule.steps


def _y(sigma: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * sigma


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _tint(colour: str) -> str:
    """``colour`` as a veil over the paper."""
    pairs = zip(_channels(PAPER), _channels(colour), strict=True)
    return "#" + "".join(f"{round(0.86 * dark + 0.14 * bright):02x}" for dark, bright in pairs)


def _channels(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _bands(canvas: _Canvas, plan: RunPlan) -> None:
    """The steps of each stage as a veil in its colour."""
    for index in range(len(plan.stages)):
        if steps := plan.steps_of(index):
            left, right = _x(plan, steps[0]), _x(plan, steps[-1] + 1)
            canvas.box(left, TOP, right, BOTTOM, _tint(_colour(index)))


def _axes(canvas: _Canvas, plan: RunPlan) -> None:
    """Noise levels at the left; steps and what the network is told of them below."""
    for quarter in range(5):
        y = _y(quarter / 4)
        canvas.line(LEFT, y, RIGHT, y, GRID, 1)
        canvas.text(LEFT - 14, y, f"{quarter / 4:g}", DIM, 15, "rm")
    canvas.text(LEFT, TOP - 16, "noise level", DIM, 14, "lm")
    every = -(-plan.schedule.steps // TICKS_AT_MOST)
    timesteps = plan.schedule.timesteps.tolist()
    # The last tick would run into the end of the axis.
    for step in range(0, plan.schedule.steps, every):
        x = _x(plan, step)
        canvas.line(x, BOTTOM, x, BOTTOM + 6, DIM, 1)
        canvas.text(x, BOTTOM + 20, f"{step + 1}", INK, 15, "mm")
        canvas.text(x, BOTTOM + 42, f"{timesteps[step]:.4g}", DIM, 13, "mm")
    canvas.text(LEFT - 26, BOTTOM + 20, "step", DIM, 15, "rm")
    canvas.text(LEFT - 26, BOTTOM + 42, "timestep", DIM, 13, "rm")


def _switches(canvas: _Canvas, plan: RunPlan) -> None:
    """A dashed line with its noise level where a stage ends."""
    for stage in plan.stages[:-1]:
        if 0 < stage.boundary <= 1:
            y = _y(stage.boundary)
            canvas.dashes(LEFT, y, RIGHT, INK)
            canvas.text(RIGHT - 8, y - 12, f"switch at {stage.boundary:.4g}", INK, 15, "rm")


def _curve(canvas: _Canvas, plan: RunPlan) -> None:
    """The way down: a line per step in the colour of its stage, a dot where the network runs."""
    steps = plan.schedule.steps
    points = [(_x(plan, i), _y(sigma)) for i, sigma in enumerate(plan.schedule.sigmas.tolist())]
    owners = [_colour(plan.stage_at(step)) for step in range(steps)]
    for step, colour in enumerate(owners):
        canvas.line(*points[step], *points[step + 1], colour, 3)
    radius = min(6.5, max(2.5, 180 / steps))
    for step, colour in enumerate(owners):
        canvas.dot(*points[step], radius, colour)


def _heading(canvas: _Canvas, plan: RunPlan) -> None:
    """What is run, and how much of it by whom."""
    schedule = plan.schedule
    title = f"{schedule.steps} steps, {schedule.name} schedule, shift {plan.shift:g}"
    canvas.text(LEFT, 36, title, INK, 23, "lm")
    x = float(LEFT)
    for index, stage in enumerate(plan.stages):
        steps = plan.steps_of(index)
        share = f"steps {steps[0] + 1} to {steps[-1] + 1}" if steps else "no step"
        words = f"{stage.name}: {share}"
        canvas.box(x, 63, x + 14, 77, _colour(index))
        canvas.text(x + 22, 70, words, INK if steps else DIM, 16, "lm")
        x += 52 + _font(SCALE * 16).getlength(words) / SCALE


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
