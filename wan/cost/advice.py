"""What a person should know of a run before waiting for it, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..config import SamplingConfig
from ..guidance import needs_uncond
from ..plan import RunPlan
from ..shapes import LatentShape, pixel_frames, pixel_size

FEW_STEPS = 8
"""Runs of so few steps need a distilled model."""
DISTILLED_SHIFT = 5.0
"""Shift that distilled 4-step models were trained with."""
SHIFT_SPREAD = 3.0
"""A shift more than this many times larger or smaller than the model's own is unusual."""
SMALLEST = 832 * 480 / (1280 * 720)
"""The smaller of the two sizes a family was trained for, as a part of the larger."""
SIZE_SLACK = 1.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Circumstances:
    """What is known of a run beside its plan.

    Attributes:
        own: how the model wants to be sampled.
        shape: latents of one clip; None where they are not known.
        fps: frames per second of the file; None where they are not known.
        negative: whether somebody wrote a negative prompt.
        loras: how many LoRAs each expert has, by its name.
    """

    own: SamplingConfig
    shape: LatentShape | None = None
    fps: float | None = None
    negative: bool = False
    loras: Mapping[str, int] = field(default_factory=dict)


def advice(plan: RunPlan, given: Circumstances) -> tuple[str, ...]:
    """Sentences about ``plan`` under these circumstances; none for a usual run."""
    return (*plan.idle(), *_of_plan(plan, given), *_of_clip(given))


def _of_plan(plan: RunPlan, given: Circumstances) -> Iterator[str]:
    own, steps, shift = given.own.shift, plan.schedule.steps, plan.shift
    guided = [
        needs_uncond(stage.guidance.at(sigma))
        for step, sigma in enumerate(plan.schedule.sigmas[:-1].tolist())
        for stage in [plan.stages[plan.stage_at(step)]]
    ]
    unguided = guided.count(False)
    if steps <= FEW_STEPS and 2 * unguided > steps:  # phases for motion are guided
        if not DISTILLED_SHIFT / 2 <= shift <= DISTILLED_SHIFT * 2:
            yield (
                f"shift {shift:g} is unusual for {unguided} steps without guidance: distilled models were "
                f"trained with {DISTILLED_SHIFT:g}"
            )
    elif not own / SHIFT_SPREAD <= shift <= own * SHIFT_SPREAD:
        yield f"shift {shift:g} is unusual for this model, whose own is {own:g}"
    if given.negative and not any(guided):
        yield "the negative prompt is not read, because the guidance scale is 1 on every step"
    bare = [name for name, count in given.loras.items() if not count]
    if bare and any(given.loras.values()):
        yield f"a LoRA is on some experts only, {bare[0]} has none; most LoRAs come in pairs"


def _of_clip(given: Circumstances) -> Iterator[str]:
    own = given.own
    if given.shape is not None:
        frames = pixel_frames(given.shape.frames)
        if frames > own.num_frames:
            yield (
                f"{frames} frames are more than the {own.num_frames} the model was trained on: motion "
                "may loop or run backwards"
            )
        height, width = pixel_size(given.shape.height, given.shape.width)
        largest = own.height * own.width
        if not largest * SMALLEST / SIZE_SLACK <= height * width <= largest * SIZE_SLACK:
            size = "larger" if height * width > largest else "smaller"
            yield (
                f"{width}x{height} is {size} than what the model was trained for, about "
                f"{largest * SMALLEST / 1e6:.3g} to {largest / 1e6:.3g} million pixels"
            )
    if given.fps is not None and abs(given.fps / own.fps - 1) > 0.01:
        pace = "faster" if given.fps > own.fps else "slower"
        yield (
            f"{given.fps:g} frames per second play {max(given.fps / own.fps, own.fps / given.fps):.3g} "
            f"times {pace} than the model moves, which is trained at {own.fps}"
        )
