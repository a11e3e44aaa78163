"""Settings that are right on the first click, as data: what to change of how a model wants to be sampled.

Sources: the official repository (quality); LightX2V's Wan2.2 distill configurations (Lightning); the
three-phase recipe of Wan2GP (Lightning with motion).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace

from .config import MotionConfig, SamplingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """Fields of :class:`SamplingConfig` that a preset sets; None leaves the model's own."""

    steps: int | None = None
    shift: float | None = None
    boundary: float | None = None
    guidance_high: float | None = None
    guidance_low: float | None = None
    solver: str | None = None
    schedule: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """One way to run.

    Attributes:
        told: what it is and what it needs, one sentence.
        changes: to the model's own settings.
        motion: the phase before both experts; None has none.
    """

    told: str
    changes: Changes = field(default_factory=Changes)
    motion: MotionConfig | None = None

    def settings(self, own: SamplingConfig) -> SamplingConfig:
        """The settings of a model that by itself wants ``own``."""
        told = {name: value for name, value in asdict(self.changes).items() if value is not None}
        return replace(own, **told)


_LIGHTNING = Changes(
    steps=4, shift=5.0, guidance_high=1.0, guidance_low=1.0, solver="euler", schedule="lightning"
)

OFFICIAL = "official"
"""The preset that changes nothing of what the model wants."""
PRESETS = {
    OFFICIAL: Preset(
        told="as the authors run the model: all steps, both prompts, UniPC",
    ),
    "20-step": Preset(
        told="as official in half the time, a little less fine",
        changes=Changes(steps=20),
    ),
    "lightning": Preset(
        told="4 steps without guidance; needs a Lightning LoRA (or distilled weights) on each expert",
        changes=_LIGHTNING,
    ),
    "lightning-motion": Preset(
        told="8 steps in three phases; needs a Lightning LoRA on each expert, and the high-noise expert "
        "without it for the first phase, which keeps the motion that few steps lose",
        changes=replace(_LIGHTNING, steps=8, shift=3.0, boundary=0.8, schedule="shifted"),
        motion=MotionConfig(),
    ),
}
"""Name -> preset; the names are the public API."""
AS_BELOW = "as below"
"""On a node: no preset, its other widgets decide."""


def get_preset(name: str) -> Preset:
    """The preset called ``name``; ValueError lists the known ones."""
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; use one of {', '.join(PRESETS)}")
    return PRESETS[name]
