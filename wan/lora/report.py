"""What a resolved LoRA covers and how strong it is, in a line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from ..files import shown
from .deltas import Delta, DoRA, LoHa, LoKr, LowRank
from .resolve import Resolved

_SHOWN = 3


def coverage(resolved: Resolved) -> str:
    """How many of the file's modules act, and why the others do not: ``398 of 400 modules, unused: ...``."""
    line = f"{resolved.used} of {resolved.modules} modules"
    if not resolved.left:
        return line
    reasons: dict[str, list[str]] = {}
    for name, reason in resolved.left:
        reasons.setdefault(reason, []).append(name)
    told = [f"{_names(names)} ({reason})" for reason, names in reasons.items()]
    more = f"; and {len(told) - _SHOWN} other reasons" if len(told) > _SHOWN else ""
    return f"{line}, unused: {'; '.join(told[:_SHOWN])}{more}"


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(shown, names[:_SHOWN])) + more


def scaling(resolved: Resolved) -> str:
    """Kinds, ranks and scales in a line: ``LoRA, rank 64, scale 0.125``; the scale is alpha / rank."""
    inner = [d.direction if isinstance(d, DoRA) else d for d in resolved.deltas.values()]
    names = {LowRank: "LoRA", LoHa: "LoHa", LoKr: "LoKr"}
    kinds = sorted({names[type(delta)] for delta in inner if type(delta) in names})
    if any(isinstance(delta, DoRA) for delta in resolved.deltas.values()):
        kinds.append("DoRA")
    if any(type(delta) not in names for delta in inner):
        kinds.append("full deltas")
    ranks = sorted({delta.rank for delta in inner if isinstance(delta, LowRank)})
    scales = sorted({round(d.scale, 6) for d in inner if isinstance(d, LowRank | LoHa | LoKr)})
    parts = [" + ".join(kinds)]
    parts += [f"rank {_range(ranks)}"] if ranks else []
    parts += [f"scale {_range(scales)}"] if scales else []
    return ", ".join(parts)


def _range(values: list[int] | list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RelativeNorm:
    """How large a LoRA is beside what it changes.

    Attributes:
        value: Frobenius norm of the changes at strength 1 over that of their weights.
        measured: weights looked at.
        of: weights changed.
    """

    value: float
    measured: int
    of: int

    def __str__(self) -> str:
        """``1.8 % of the weights' norm (16 of 400 measured)``."""
        return (
            f"{100 * self.value:.2g} % of the weights' norm ({self.measured} of {self.of} measured)"
        )


def relative_norm(
    resolved: Resolved, weight_of: Callable[[str], Tensor], sample: int = 16
) -> RelativeNorm:
    """Measure a LoRA on an even sample of the weights it changes; biases and the like only if it has no other.

    Args:
        resolved: a LoRA on one network.
        weight_of: official parameter name -> that weight, dequantised, any float dtype.
        sample: how many to read at most; each costs one weight.
    """
    matrices = [name for name in resolved.deltas if name.endswith(".weight") and "norm" not in name]
    names = matrices or list(resolved.deltas)
    count = min(sample, len(names))
    chosen = [names[i * len(names) // count] for i in range(count)]
    change = total = 0.0
    for name in chosen:
        weight = weight_of(name).float()
        delta: Delta = resolved.deltas[name]
        change += delta.norm(weight) ** 2
        total += float(weight.norm()) ** 2
    return RelativeNorm(value=sqrt(change / total) if total else 0.0, measured=count, of=len(names))
