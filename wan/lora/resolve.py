"""From a LoRA's tensors to deltas on the parameters of one network; what does not fit is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..files import shown
from .build import Parts, build
from .deltas import Delta
from .dialects import module_index, parse, scaled_key
from .file import Section

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_NEARLY_NOTHING = 0.1
"""Share of fitting modules below which the file is for another network."""
ABSENT = "not in this network"

Names = Mapping[str, "tuple[int, ...] | None"]
"""Official parameter names of a network and their shapes; None where the shape is not known."""


class Unused(NamedTuple):
    """What of a LoRA was not used."""

    name: str
    """A module as the file spells it, or a key."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolved:
    """A LoRA on one network.

    Attributes:
        section: where it came from.
        deltas: official parameter name -> its change.
        left: what was not used and why.
        modules: how many modules (or lone parameters) the file speaks of.
    """

    section: Section
    deltas: Mapping[str, Delta]
    left: tuple[Unused, ...]
    modules: int

    @property
    def unused(self) -> tuple[str, ...]:
        """``name: reason`` of everything left over."""
        return tuple(shown(f"{name}: {reason}") for name, reason in self.left)

    @property
    def used(self) -> int:
        """Modules of which every tensor is used."""
        return self.modules - len({name for name, _ in self.left})


def resolve(section: Section, names: Names) -> Resolved:
    """Find the parameters of a network that a LoRA changes, and how.

    Args:
        section: of a file from :func:`wan.lora.read_lora`.
        names: official parameter names (``blocks.0.self_attn.q.weight``, ``head.modulation`` ...) -> shapes.

    Raises:
        ValueError: (nearly) nothing fits, because it is a LoRA of another network; or it holds NaN or
            infinite values.
    """
    index = module_index(names)
    modules, left = _group(section)
    known = {name: keys for name, keys in modules.items() if name.module in index}
    left += [Unused(name.spelled, ABSENT) for name in modules if name not in known]
    tensors, scales = _read(section, [key for keys in known.values() for key in keys.values()])
    deltas: dict[str, Delta] = {}
    fitting = 0
    for name, keys in known.items():
        parts = Parts(
            tensors={part: tensors[key] for part, key in keys.items()},
            scales={part: scales[key] for part, key in keys.items() if key in scales},
            factor=partial(section.scaling.factor, name.module),
        )
        found, problems = _deltas(index[name.module], parts, names, deltas)
        fitting += bool(found)
        deltas |= found
        left += [Unused(name.spelled, problem) for problem in problems]
    count = len({name.spelled for name in modules} | {each.name for each in left})
    _check_foreign(section, fitting, count, left)
    for key, tensor in tensors.items():  # last, because this is what reads them
        _check_finite(section, key, tensor)
    return Resolved(section=section, deltas=deltas, left=tuple(left), modules=count)


class _Name(NamedTuple):
    """Of a module: as the file spells it, and without its prefix."""

    spelled: str
    module: str


def _group(section: Section) -> tuple[dict[_Name, dict[str, str]], list[Unused]]:
    """Keys by module and part, and the keys that are no part of anything; from the header alone."""
    modules: dict[_Name, dict[str, str]] = {}
    left: list[Unused] = []
    for key, info in section.tensors.items():
        spelled = parse(key)
        if spelled is None:
            if not _scaled_by(key, section):
                left.append(Unused(key, "not a LoRA tensor"))
            continue
        parts = modules.setdefault(_Name(spelled.name, spelled.module), {})
        if spelled.part in parts:
            left.append(Unused(key, f"says again what {parts[spelled.part]} says"))
        elif info.dtype not in _FLOATS and spelled.part != "alpha":
            left.append(Unused(key, f"stored as {info.dtype}, which is not read in a LoRA"))
        else:
            parts[spelled.part] = key
    return {name: parts for name, parts in modules.items() if parts}, left


def _scaled_by(key: str, section: Section) -> str | None:
    """The tensor that ``key`` is the scale of, if it is one."""
    return next((k for k in scaled_key(key) or () if k in section.tensors), None)


def _read(section: Section, keys: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Tensors by key, mapped from disk, and the scales of fp8 ones by the key of what they scale.

    A scale per row is multiplied in, because no later step has a place for it.
    """
    wanted = set(keys)
    scale_keys = {key: of for key in section.tensors if (of := _scaled_by(key, section)) in wanted}
    stored = section.read([*keys, *scale_keys])
    scales: dict[str, float] = {}
    for key, scaled in scale_keys.items():
        scale = stored.pop(key).float()
        _check_finite(section, key, scale)
        if scale.numel() == 1:
            scales[scaled] = float(scale)
        elif (scale.numel(),) == stored[scaled].shape[:1]:
            scale = scale.reshape(-1, *[1] * (stored[scaled].ndim - 1))
            stored[scaled] = stored[scaled].float() * scale
        else:
            raise ValueError(
                f"{shown(section.path)} has {scale.numel()} scales for {shown(scaled)} of shape "
                f"{tuple(stored[scaled].shape)}; download it again"
            )
    return stored, scales


def _check_finite(section: Section, key: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor.float()).all()):
        raise ValueError(
            f"{shown(section.path)} holds NaN or infinite values ({shown(key)}); "
            "download it again or choose another"
        )


def _deltas(
    official: str, parts: Parts, names: Names, taken: Mapping[str, Delta]
) -> tuple[dict[str, Delta], list[str]]:
    """What one module changes, by parameter, and what is wrong with the rest of it."""
    changes, problems = build(parts)
    found: dict[str, Delta] = {}
    for where, delta in changes.items():
        alone = where == "weight" and official in names
        target = official if alone else f"{official}.{where}"
        try:
            if target not in names:
                raise ValueError(f"the network has no {target}")
            if target in taken:
                raise ValueError(f"changes {target} a second time")
            delta.check(names[target])
        except ValueError as error:
            problems.append(str(error))
        else:
            found[target] = delta
    return found, problems


def _check_foreign(section: Section, fitting: int, modules: int, left: Sequence[Unused]) -> None:
    if fitting > _NEARLY_NOTHING * modules:
        return
    unknown = [each for each in left if each.reason == ABSENT]
    example = next(iter(unknown or left), Unused("nothing", "empty"))
    if len(unknown) * 2 < modules:
        raise ValueError(
            f"{shown(section.path)} does not fit this network: {shown(example.name)} {example.reason}; "
            "download it again, or choose a LoRA of the same model size"
        )
    raise ValueError(
        f"{shown(section.path)} is a LoRA of another network (it holds '{shown(example.name)}', ...); "
        "choose one made for Wan2.2 14B or Wan2.1 14B"
    )
