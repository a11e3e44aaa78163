"""What is written, whatever the file: size, rate, tags, sound."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from .audio import Audio

_MAX_FPS_DENOMINATOR = 1001


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip:
    """Everything about a clip but its frames.

    Attributes:
        width: pixels.
        height: pixels.
        fps: frames per second, above 0.
        metadata: tags of the file; strings are stored as they are, anything else as JSON (a ComfyUI
            host stores its graphs under ``prompt`` and ``workflow``).
        audio: sound from the first frame on; cut or padded with silence to the clip's length.

    Raises:
        ValueError: an empty size, a rate that is not positive, or metadata that is not JSON.
    """

    width: int
    height: int
    fps: float | Fraction
    metadata: Mapping[str, object] = field(default_factory=dict)
    audio: Audio | None = None

    def __post_init__(self) -> None:
        """Check it all."""
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a clip of {self.width}x{self.height} has no pixel; use 16 or more")
        if not 0 < self.fps < math.inf:
            raise ValueError(f"fps={self.fps} is not a positive number; Wan 2.2 A14B makes 16")
        _ = self.tags

    @property
    def rate(self) -> Fraction:
        """Frames per second as files tell it."""
        return Fraction(self.fps).limit_denominator(_MAX_FPS_DENOMINATOR)

    @property
    def tags(self) -> dict[str, str]:
        """``metadata`` as text."""
        return {key: _tag(key, value) for key, value in self.metadata.items()}


def _tag(key: str, value: object) -> str:
    if isinstance(value, str):
        # Half of a surrogate pair, which JSON may bring, is no text for a file.
        return value.encode("utf-8", "replace").decode()
    try:
        return json.dumps(_finite(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata {key!r} is not JSON ({error}); use text or JSON") from error


def _finite(value: object) -> object:
    """NaN and infinity as null: browsers read no JSON that holds them, ComfyUI's prompts may."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return value
