"""What a LoRA does to one weight, in every parametrisation that is published for Wan.

Factors stay in their stored dtype, mapped from disk; the arithmetic is float32. Weights of more than
two axes (the patch embedding) count as matrices ``(out, everything else)``.

Sources: PEFT (LoRA, DoRA) and LyCORIS (LoCon, LoHa, LoKr, Tucker factors) for the formulas.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


class Delta(ABC):
    """A change of one weight; immutable."""

    __slots__ = ()

    @abstractmethod
    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """The changed weight: float32, of ``weight``'s shape and device; ``weight`` is not touched.

        Strength 0 is the weight itself, 1 what was trained; any real number is allowed.
        """

    @abstractmethod
    def check(self, shape: tuple[int, ...] | None) -> None:
        """Raise ValueError, saying why in a few words, unless a weight of ``shape`` can take this.

        Without a shape only what the change says of itself is checked.
        """

    @abstractmethod
    def norm(self, weight: Tensor | None = None) -> float:
        """Frobenius norm of the change at strength 1.

        Args:
            weight: needed where the change depends on it (:class:`DoRA`, :class:`Set`).
        """

    def to(self, device: torch.device | str) -> Delta:
        """The same on ``device``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        moved = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor | Delta)}
        return replace(self, **moved)  # type: ignore[type-var]


class Additive(Delta):
    """A change that does not depend on the weight: ``W + strength * D``."""

    __slots__ = ()

    @abstractmethod
    def value(self, device: torch.device) -> Tensor:
        """``D`` in float32; its first axis is that of the weight, the rest may be flattened."""

    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Rows and columns of ``D``; ValueError when the factors do not fit each other."""

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """``W + strength * D``."""
        return torch.add(
            weight.float(), self.value(weight.device).reshape(weight.shape), alpha=strength
        )

    def check(self, shape: tuple[int, ...] | None) -> None:
        """Rows and columns must be those of the flattened weight."""
        size = self.size()
        if shape is not None and size != (shape[0], math.prod(shape[1:])):
            wanted = (shape[0], math.prod(shape[1:]))
            raise ValueError(f"makes {_times(size)}, the weight is {_times(wanted)}")

    def norm(self, weight: Tensor | None = None) -> float:
        """``|D|``, from ``D`` itself."""
        return float(self.value(torch.device("cpu")).norm())


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank(Additive):
    """``D = scale * up @ down``, the plain LoRA; with ``mid`` the Tucker form of LoCon."""

    up: Tensor
    """``(out, rank)``, convolutions ``(out, rank, 1, 1, 1)``."""
    down: Tensor
    """``(rank, in)``, convolutions ``(rank, in, kernel...)`` or flattened; ``(rank, in)`` with ``mid``."""
    mid: Tensor | None = None
    """``(rank, rank, kernel...)``."""
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Rows of ``down``."""
        return self.down.shape[0]

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``(out, rank)`` and ``(rank, columns)`` float32, without the scale."""
        up, down = _wide(self.up, device).flatten(1), _wide(self.down, device).flatten(1)
        if self.mid is not None:
            down = torch.einsum("m n ..., n i -> m i ...", _wide(self.mid, device), down).flatten(1)
        return up, down

    def value(self, device: torch.device) -> Tensor:
        """``(out, columns)``."""
        up, down = self.factors(device)
        return self.scale * (up @ down)

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """``W + strength * D`` in one pass over the weight."""
        flat = weight.float().reshape(weight.shape[0], -1)
        changed = torch.addmm(flat, *self.factors(weight.device), alpha=strength * self.scale)
        return changed.reshape(weight.shape)

    def size(self) -> tuple[int, int]:
        """Rows of ``up``, columns of ``down`` (times the kernel of ``mid``)."""
        columns, inner = math.prod(self.down.shape[1:]), math.prod(self.up.shape[1:])
        kernel: tuple[int, ...] = ()
        if self.mid is not None:
            kernel = tuple(self.mid.shape[2:])
            if tuple(self.mid.shape[:2]) != (inner, self.rank):
                raise ValueError("has factors that do not fit each other")
        elif inner != self.rank:
            raise ValueError(f"has {inner} columns up and {self.rank} rows down")
        return self.up.shape[0], columns * math.prod(kernel)

    def norm(self, weight: Tensor | None = None) -> float:
        """``|D|`` from the two rank by rank Gram matrices."""
        up, down = (factor.double() for factor in self.factors(torch.device("cpu")))
        square = float(((up.T @ up) * (down @ down.T)).sum())
        return abs(self.scale) * math.sqrt(max(square, 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class LoHa(Additive):
    """``D = scale * (w1_a @ w1_b) * (w2_a @ w2_b)``, elementwise between the two products.

    With Tucker cores ``t1`` and ``t2`` ``(rank, rank, kernel...)`` each product is rebuilt from three factors,
    the first ``(rank, out)``, the second ``(rank, in)``.
    """

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    t1: Tensor | None = None
    t2: Tensor | None = None
    scale: float = 1.0

    def value(self, device: torch.device) -> Tensor:
        """``(out, columns)``."""
        one = _product(self.w1_a, self.w1_b, self.t1, device)
        other = _product(self.w2_a, self.w2_b, self.t2, device)
        return self.scale * (one.flatten(1) * other.flatten(1))

    def size(self) -> tuple[int, int]:
        """Of both products."""
        one = _product_shape(self.w1_a, self.w1_b, self.t1)
        if one != _product_shape(self.w2_a, self.w2_b, self.t2):
            raise ValueError("has factors that do not fit each other")
        return one[0], math.prod(one[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class LoKr(Additive):
    """``D = scale * kron(w1, w2)``; each half is whole or a product of two factors.

    ``w2`` may have a kernel, and may be a Tucker product with the core ``t2``.
    """

    w1: Tensor | None = None
    w1_a: Tensor | None = None
    w1_b: Tensor | None = None
    w2: Tensor | None = None
    w2_a: Tensor | None = None
    w2_b: Tensor | None = None
    t2: Tensor | None = None
    scale: float = 1.0

    def halves(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``w1 (a, b)`` and ``w2 (c, d, kernel...)`` float32."""
        return (
            _whole(self.w1, self.w1_a, self.w1_b, None, device),
            _whole(self.w2, self.w2_a, self.w2_b, self.t2, device),
        )

    def value(self, device: torch.device) -> Tensor:
        """``(a c, b d, kernel...)``."""
        one, other = self.halves(device)
        one = one.reshape(*one.shape, *[1] * (other.ndim - one.ndim))
        return torch.kron(self.scale * one, other)

    def size(self) -> tuple[int, int]:
        """Products of the halves' sizes."""
        one = _whole_shape(self.w1, self.w1_a, self.w1_b, None)
        other = _whole_shape(self.w2, self.w2_a, self.w2_b, self.t2)
        return one[0] * other[0], math.prod(one[1:]) * math.prod(other[1:])

    def norm(self, weight: Tensor | None = None) -> float:
        """``|w1| * |w2|``: the norm of a Kronecker product."""
        one, other = self.halves(torch.device("cpu"))
        return abs(self.scale) * float(one.norm()) * float(other.norm())


@dataclass(frozen=True, kw_only=True, slots=True)
class Diff(Additive):
    """``D = scale * diff``: a whole delta of a weight, a bias or a modulation."""

    diff: Tensor
    scale: float = 1.0

    def value(self, device: torch.device) -> Tensor:
        """In the shape it is stored in."""
        return self.scale * _wide(self.diff, device)

    def size(self) -> tuple[int, int]:
        """First axis, all others."""
        return self.diff.shape[0], math.prod(self.diff.shape[1:])

    def check(self, shape: tuple[int, ...] | None) -> None:
        """The shape must be the weight's, but for axes of length 1."""
        _check_shape(self.diff, shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Set(Delta):
    """Another weight altogether; strengths between 0 and 1 lie between the two."""

    value: Tensor
    scale: float = 1.0

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """``W + strength * (value - W)``, exact at 0 and 1."""
        value = self.scale * _wide(self.value, weight.device).reshape(weight.shape)
        return torch.lerp(weight.float(), value, strength)

    def check(self, shape: tuple[int, ...] | None) -> None:
        """The shape must be the weight's, but for axes of length 1."""
        _check_shape(self.value, shape)

    def norm(self, weight: Tensor | None = None) -> float:
        """``|value - W|``."""
        return _change_norm(self, weight)


@dataclass(frozen=True, kw_only=True, slots=True)
class DoRA(Delta):
    """Direction and magnitude: ``W' = magnitude * V / |V|`` with ``V = W + D``.

    The norm is that of each output row, as in PEFT and LyCORIS, or of each input column when the
    magnitude is ``(1, in, ...)``, as in LyCORIS' older files. ComfyUI divides rows by the norm of
    ``W`` instead of ``V``; the trainers do not, and what was trained is what is applied here. A
    strength other than 1 goes straight from ``W`` to ``W'``: ``W + strength * (W' - W)``.
    """

    direction: Additive
    magnitude: Tensor
    """``(out,)``, ``(out, 1, ...)`` or ``(1, in, ...)``."""

    @property
    def by_column(self) -> bool:
        """Whether the magnitude belongs to the inputs."""
        return self.magnitude.ndim > 1 and self.magnitude.shape[0] == 1 < self.magnitude.numel()

    def apply(self, weight: Tensor, strength: float) -> Tensor:
        """``W + strength * (W' - W)``."""
        merged = self.direction.apply(weight, 1.0)
        kept = 1 if self.by_column else 0
        axes = [axis for axis in range(weight.ndim) if axis != kept]
        shape = [-1 if axis == kept else 1 for axis in range(weight.ndim)]
        norm = merged.square().sum(axes, keepdim=True).sqrt() + torch.finfo(torch.float32).eps
        merged *= _wide(self.magnitude, weight.device).reshape(shape) / norm
        return torch.lerp(weight.float(), merged, strength)

    def check(self, shape: tuple[int, ...] | None) -> None:
        """The direction must fit, and the magnitude have one number per row or column."""
        self.direction.check(shape)
        axis = 1 if self.by_column else 0
        if shape is not None and shape[axis : axis + 1] != (self.magnitude.numel(),):
            raise ValueError(f"has {self.magnitude.numel()} magnitudes for {_times(shape)}")

    def norm(self, weight: Tensor | None = None) -> float:
        """``|W' - W|``."""
        return _change_norm(self, weight)


def _wide(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device=device, dtype=torch.float32)


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _check_shape(tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    stored = tuple(tensor.shape)
    if shape is not None and [n for n in stored if n != 1] != [n for n in shape if n != 1]:
        raise ValueError(f"has shape {_times(stored)} instead of {_times(shape)}")


def _change_norm(delta: Delta, weight: Tensor | None) -> float:
    if weight is None:
        raise ValueError("the norm of this change depends on the weight; pass it")
    return float((delta.apply(weight, 1.0) - weight.float()).norm())


def _product(a: Tensor, b: Tensor, core: Tensor | None, device: torch.device) -> Tensor:
    one, other = _wide(a, device), _wide(b, device)
    if core is None:
        return (one @ other.flatten(1)).reshape(a.shape[0], *b.shape[1:])
    # torch.kron takes only what is contiguous.
    return torch.einsum(
        "i j ..., i p, j r -> p r ...", _wide(core, device), one, other
    ).contiguous()


def _product_shape(a: Tensor, b: Tensor, core: Tensor | None) -> tuple[int, ...]:
    shape = (a.shape[0], *b.shape[1:])
    fits = a.ndim == 2 and b.ndim >= 2 and a.shape[1] == b.shape[0]
    if core is not None:
        shape = (a.shape[-1], b.shape[-1], *core.shape[2:])
        fits = a.ndim == b.ndim == 2 and tuple(core.shape[:2]) == (a.shape[0], b.shape[0])
    if not fits:
        raise ValueError("has factors that do not fit each other")
    return shape


def _whole(
    whole: Tensor | None,
    a: Tensor | None,
    b: Tensor | None,
    core: Tensor | None,
    device: torch.device,
) -> Tensor:
    if whole is not None:
        return _wide(whole, device)
    if a is None or b is None:
        raise ValueError("has only one factor of a product")
    return _product(a, b, core, device)


def _whole_shape(
    whole: Tensor | None, a: Tensor | None, b: Tensor | None, core: Tensor | None
) -> tuple[int, ...]:
    if whole is not None:
        return tuple(whole.shape)
    if a is None or b is None:
        raise ValueError("has only one factor of a product")
    return _product_shape(a, b, core)
