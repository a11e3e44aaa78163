"""What a recipe of another program says, in the terms of this one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..config import I2V_A14B_SAMPLING, T2V_A14B
from ..experts import ABOVE_ALL, boundary_at_step, check_boundary, count_high
from ..guidance import check_scale
from ..schedule import SCHEDULES, Schedule, make_schedule
from ..switch import in_all_forms

T2V_BOUNDARY = T2V_A14B.sampling.boundary
I2V_BOUNDARY = I2V_A14B_SAMPLING.boundary
EXACT = 1e-6
"""Noise levels this close are the same: two programs may round the last bit of float32 differently."""
GPU_NOISE = (
    "the noise is drawn on the GPU there and on the CPU here: the same seed gives another clip of the "
    "same kind"
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recipe:
    """One run as another program would do it.

    Attributes:
        source: the program, in words.
        schedule: its noise levels and what the network is told, step by step.
        shift: the shift behind them.
        boundary: lowest noise level of the high-noise expert, in [0, 1] (or ``ABOVE_ALL``).
        guidance_high: guidance scale of the high-noise expert; 1 is none.
        guidance_low: that of the low-noise expert.
        solver: the nearest solver of this library.
        host_sampler: ComfyUI's own sampler of the recipe, where it names one.
        seed: of the initial noise; None where it is not told or drawn anew each time.
        width, height, num_frames: of the clip in pixels and frames, where they are told.
        prompt, negative_prompt: the texts, where they are told.
        notes: what was corrected and what cannot match, one sentence each.
    """

    source: str
    schedule: Schedule
    shift: float
    boundary: float
    guidance_high: float
    guidance_low: float
    solver: str
    host_sampler: str | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_boundary(self.boundary)
        for scale in (self.guidance_high, self.guidance_low):
            check_scale(scale)

    @property
    def steps(self) -> int:
        """Steps of both experts together."""
        return self.schedule.steps

    @property
    def switch_step(self) -> int:
        """How many of the steps run on the high-noise expert."""
        return count_high(self.schedule, self.boundary)

    def with_notes(self, *notes: str) -> Recipe:
        """The same with more to say; "" says nothing."""
        return replace(self, notes=(*self.notes, *filter(None, notes)))


def nearest_schedule(recipe: Recipe) -> tuple[str, float]:
    """The schedule of this library that is closest, and the largest difference of a noise level.

    The difference is 0 only if the network is told the same timesteps, too.
    """
    found: list[tuple[float, float, str]] = []
    for name in SCHEDULES:
        try:
            ours = make_schedule(name, steps=recipe.steps, shift=recipe.shift)
        except ValueError:
            continue  # a grid of a fixed number of steps
        apart = (ours.sigmas - recipe.schedule.sigmas).abs().max().item()
        told = (ours.timesteps - recipe.schedule.timesteps).abs().max().item()
        same = apart < EXACT and told < 1000 * EXACT
        found.append((0.0 if same else max(apart, math.ulp(1.0)), told, name))
    difference, _, name = min(found)
    return name, difference


def boundary_of_step(schedule: Schedule, step: int) -> float:
    """The boundary after ``step`` steps, held within 0..N as the programs that count steps do."""
    return boundary_at_step(schedule, max(0, min(step, schedule.steps)))


def report(recipe: Recipe) -> str:
    """The recipe in words, a line each; the notes come last."""
    name, difference = nearest_schedule(recipe)
    grid = f"the schedule {name}" if not difference else f"{recipe.schedule.name} noise levels"
    told = [
        f"read as {recipe.source}",
        f"{recipe.steps} steps, {grid}, shift {recipe.shift:g}, sampler "
        f"{recipe.host_sampler or recipe.solver}",
        f"switch: {in_all_forms(recipe.boundary, recipe.schedule)}",
        f"guidance: {recipe.guidance_high:g} on the high-noise expert, {recipe.guidance_low:g} on the "
        "low-noise one",
        f"seed: {'not told' if recipe.seed is None else recipe.seed}",
    ]
    size = (recipe.width, recipe.height, recipe.num_frames)
    if None not in size:
        told.append("clip: {} x {}, {} frames".format(*size))
    return "\n".join([*told, *(f"note: {note}" for note in recipe.notes)])


def command(recipe: Recipe) -> tuple[list[str], list[str]]:
    """Arguments of ``python -m wan generate`` for the recipe, and what they cannot say, in sentences."""
    name, difference = nearest_schedule(recipe)
    missing = []
    if difference:
        missing.append(
            f"the command runs the schedule {name}, which is at most {difference:.2g} in sigma away; "
            "Import Wan Recipe in ComfyUI gives the very noise levels"
        )
    if recipe.host_sampler and recipe.host_sampler != recipe.solver:
        missing.append(f"ComfyUI's {recipe.host_sampler} becomes {recipe.solver} in the command")
    arguments = {
        "--prompt": recipe.prompt,
        "--negative": recipe.negative_prompt,
        "--width": recipe.width,
        "--height": recipe.height,
        "--frames": recipe.num_frames,
        "--steps": recipe.steps,
        "--shift": f"{recipe.shift:g}",
        "--schedule": name,
        "--solver": recipe.solver,
        **_switch(recipe),
        "--guidance-high": f"{recipe.guidance_high:g}",
        "--guidance-low": f"{recipe.guidance_low:g}",
        "--seed": recipe.seed,
    }
    told = [(key, str(value)) for key, value in arguments.items() if value is not None]
    return [word for pair in told for word in pair], missing


def _switch(recipe: Recipe) -> dict[str, object]:
    """A boundary of few digits was written as one; any other was a number of steps."""
    if 0 < recipe.boundary < ABOVE_ALL and round(recipe.boundary, 3) == recipe.boundary:
        return {"--boundary": f"{recipe.boundary:g}"}
    return {"--switch-step": recipe.switch_step}
