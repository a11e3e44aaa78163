"""The tensors of one module of a LoRA become its changes of the weight, the bias and the modulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from torch import Tensor

from .deltas import Additive, Delta, Diff, DoRA, LoHa, LoKr, LowRank, Set

Factor = Callable[[int, "float | None"], float]
"""``(rank, alpha or None) -> scale`` of the module."""
_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


@dataclass(kw_only=True, slots=True)
class Parts:
    """The tensors of one module by part; taking one marks it as used."""

    tensors: Mapping[str, Tensor]
    scales: Mapping[str, float]
    """Of parts stored as scaled fp8."""
    factor: Factor
    used: set[str] = field(default_factory=set)

    def take(self, part: str) -> Tensor | None:
        """The tensor of a part, if the module has it."""
        if part in self.tensors:
            self.used.add(part)
        return self.tensors.get(part)

    def has(self, *parts: str) -> bool:
        """Whether all of them are there."""
        return all(part in self.tensors for part in parts)

    def scale(self, *parts: str) -> float:
        """Product of the parts' own scales."""
        return prod(self.scales.get(part, 1.0) for part in parts)

    def factor_for(self, rank: int) -> float:
        """The module's scale at ``rank``, with its own alpha if it has one."""
        alpha = self.take("alpha")
        if alpha is not None and alpha.numel() != 1:
            raise ValueError("has an alpha that is not one number")
        if not rank:
            raise ValueError("has rank 0")
        return self.factor(rank, None if alpha is None else float(alpha))


def build(parts: Parts) -> tuple[dict[str, Delta], list[str]]:
    """The changes of one module.

    Returns:
        ``weight``, ``bias`` or ``modulation`` -> its change; and, in words, what is wrong with the rest.
    """
    problems: list[str] = []
    changes: dict[str, Delta] = {}
    for make in (_low_rank, _loha, _lokr, _diff, _set):
        before = set(parts.used)
        try:
            delta = make(parts)
        except ValueError as error:
            problems.append(str(error))
            continue
        if delta is not None and "weight" in changes:
            problems.append(f"has a second change of its weight ({_list(parts.used - before)})")
        elif delta is not None:
            changes["weight"] = delta
    changes |= _others(parts, changes.get("weight"))
    if isinstance(direction := changes.get("weight"), Additive):
        if (magnitude := parts.take("magnitude")) is not None:
            magnitude = magnitude.flatten()  # PEFT's is one per row, in shapes of its own
        else:
            magnitude = parts.take("dora_scale")
        if magnitude is not None:
            changes["weight"] = DoRA(direction=direction, magnitude=magnitude)
    rest = set(parts.tensors) - parts.used
    if rest and not problems:
        problems.append(f"has {_list(rest)} and not what belongs to it")
    return changes, problems


def _others(parts: Parts, weight: Delta | None) -> dict[str, Delta]:
    changes: dict[str, Delta] = {}
    if (bias := parts.take("diff_b")) is not None:
        changes["bias"] = Diff(diff=bias, scale=parts.scale("diff_b"))
    elif isinstance(weight, LowRank) and (bias := parts.take("up_bias")) is not None:
        # PEFT's bias of the upper matrix is scaled with it, but not with an fp8 scale of the matrix.
        scale = weight.scale / parts.scale("up", "down", "mid")
        changes["bias"] = Diff(diff=bias, scale=scale * parts.scale("up_bias"))
    if (table := parts.take("diff_m")) is not None:
        changes["modulation"] = Diff(diff=table, scale=parts.scale("diff_m"))
    return changes


def _low_rank(parts: Parts) -> LowRank | None:
    if not parts.has("up", "down"):
        return None
    up, down = parts.take("up"), parts.take("down")
    assert up is not None
    assert down is not None
    if up.ndim < 2 or down.ndim < 2:
        raise ValueError("has factors that are no matrices")
    scale = parts.factor_for(down.shape[0]) * parts.scale("up", "down", "mid")
    return LowRank(up=up, down=down, mid=parts.take("mid"), scale=scale)


def _loha(parts: Parts) -> LoHa | None:
    if not parts.has(*_HADA):
        return None
    w1_a, w1_b, w2_a, w2_b = (parts.tensors[part] for part in _HADA)
    parts.used.update(_HADA)
    if min(t.ndim for t in (w1_a, w1_b, w2_a, w2_b)) < 2:
        raise ValueError("has factors that are no matrices")
    t1, t2 = parts.take("hada_t1"), parts.take("hada_t2")
    if (t1 is None) != (t2 is None):
        raise ValueError("has one Tucker core of two")
    scale = parts.factor_for(w1_b.shape[0]) * parts.scale(*_HADA, "hada_t1", "hada_t2")
    return LoHa(w1_a=w1_a, w1_b=w1_b, w2_a=w2_a, w2_b=w2_b, t1=t1, t2=t2, scale=scale)


def _lokr(parts: Parts) -> LoKr | None:
    whole = [parts.has(f"lokr_{half}") for half in ("w1", "w2")]
    split = [parts.has(f"lokr_{half}_a", f"lokr_{half}_b") for half in ("w1", "w2")]
    if not all(a or b for a, b in zip(whole, split, strict=True)):
        return None
    names = [f"lokr_{half}" if full else f"lokr_{half}_a lokr_{half}_b" for half, full in
             zip(("w1", "w2"), whole, strict=True)]  # fmt: skip
    names = [*" ".join(names).split(), *(["lokr_t2"] if not whole[1] else [])]
    found = {name.removeprefix("lokr_"): parts.take(name) for name in names}
    w1_b, w2_b = found.get("w1_b"), found.get("w2_b")
    if any(tensor is not None and tensor.ndim < 2 for tensor in found.values()):
        raise ValueError("has factors that are no matrices")
    divisor = w2_b if w2_b is not None else w1_b
    if divisor is None:
        parts.take("alpha")  # two whole halves have no rank to divide by: the trainers use 1
    scale = parts.factor_for(divisor.shape[0]) if divisor is not None else 1.0
    return LoKr(**found, scale=scale * parts.scale(*names))


def _diff(parts: Parts) -> Diff | None:
    diff = parts.take("diff")
    return None if diff is None else Diff(diff=diff, scale=parts.scale("diff"))


def _set(parts: Parts) -> Set | None:
    value = parts.take("set_weight")
    return None if value is None else Set(value=value, scale=parts.scale("set_weight"))


def _list(parts: set[str]) -> str:
    return ", ".join(sorted(parts))
