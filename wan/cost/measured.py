"""What forwards took, kept for forecasts of later runs."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from math import log

from .timing import Measurement

KEPT = 64
"""Measurements that are remembered; the oldest goes first."""
NEAR = 2.0
"""Factor of tokens within which seconds of another size are worth telling without a warning."""
_SAME = "the last run of this kind and size"
_OTHER = "a run of another size"
_FAR = "a run of another size, which may be far off"


class Measured:
    """The last measurement of each kind and size of forward.

    A kind is all that decides the seconds beside the size: networks, device, kernels, patches. Sizes are
    apart because the rate in operations a second is not one number: small forwards wait for launches
    and weights, large ones for attention.
    """

    def __init__(self) -> None:
        """Nothing was measured yet."""
        self._kept: dict[tuple[Hashable, int, int], Measurement] = {}

    def keep(self, kind: Hashable, batch: int, tokens: int, *, seconds: float, flops: int) -> None:
        """A forward of ``batch`` latents of ``tokens`` tokens each took ``seconds``; ``flops`` of all."""
        key = kind, batch, tokens
        self._kept.pop(key, None)
        self._kept[key] = Measurement(seconds=seconds, flops=flops, source=_SAME)
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]

    def same(self, kind: Hashable, batch: int, tokens: int) -> Measurement | None:
        """The measurement of this kind and size; None if there is none."""
        return self._kept.get((kind, batch, tokens))

    def nearest(self, kind: Hashable, batch: int, tokens: int) -> Measurement | None:
        """The one of this kind whose size is nearest, whose ``source`` says how near; None without any."""
        if same := self.same(kind, batch, tokens):
            return same
        found = [
            (abs(log(other * length / (batch * tokens))), measured)
            for (whose, other, length), measured in self._kept.items()
            if whose == kind
        ]
        if not found:
            return None
        distance, measured = min(found, key=lambda each: each[0])
        return replace(measured, source=_OTHER if distance <= log(NEAR) else _FAR)
