"""Writing a LoRA in another dialect: the same changes under other names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..keys.roles import LOW
from ..keys.transformer import diffusers_key, known_keys
from .card import BLOCKS
from .deltas import Delta, Diff, DoRA, LoHa, LoKr, LowRank, Set
from .file import Section
from .resolve import Unused, resolve


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How one family of programs spells a LoRA."""

    prefix: str
    underscores: bool = False
    diffusers_names: bool = False
    peft: bool = False
    """Only low rank: scales folded into the factors, DoRA by row, biases of adapted layers."""


DIALECTS = {
    "comfyui": Dialect(prefix="diffusion_model."),
    "bare": Dialect(prefix=""),
    "kohya": Dialect(prefix="lora_unet_", underscores=True),
    "peft": Dialect(prefix="base_model.model.", peft=True),
    "diffusers": Dialect(prefix="transformer.", diffusers_names=True, peft=True),
}
"""``comfyui``, ``bare`` and ``kohya`` hold every kind of change, ``peft`` and ``diffusers`` low rank alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Renamed:
    """Tensors by their new keys, and what could not be written."""

    tensors: Mapping[str, Tensor]
    left: tuple[Unused, ...]


def rename(section: Section, dialect: str, role: str | None = None) -> Renamed:
    """Write one expert's part of a LoRA file in another dialect.

    The changes are the same; alphas are kept where the dialect has them and folded into the upper
    factor where not, in its own dtype if that is exact and in float32 otherwise.

    Args:
        section: of a file from :func:`wan.lora.read_lora`.
        dialect: a key of ``DIALECTS``.
        role: ``low_noise`` gives diffusers' second prefix, so that both experts fit into one file.

    Raises:
        ValueError: unknown dialect, or the file is not for a Wan network.
    """
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is unknown; use one of {', '.join(DIALECTS)}")
    resolved = resolve(section, dict.fromkeys(known_keys(BLOCKS)))
    return _write(resolved.deltas, DIALECTS[dialect], role, resolved.left)


def _write(
    deltas: Mapping[str, Delta], dialect: Dialect, role: str | None, left: tuple[Unused, ...]
) -> Renamed:
    tensors: dict[str, Tensor] = {}
    refused = list(left)
    for name, delta in deltas.items():
        module, _, leaf = name.rpartition(".")
        adapted = isinstance(deltas.get(f"{module}.weight"), LowRank)
        parts = _peft_parts(leaf, delta, adapted) if dialect.peft else _parts(leaf, delta)
        if not parts:
            refused.append(Unused(name, "not expressible in this dialect, which is low rank alone"))
        spelled = _spell(name, dialect, role)
        if leaf == "weight" or (leaf == "bias" and isinstance(delta, Diff)):
            spelled = spelled[
                : -len(leaf) - 1
            ]  # of the module; other changes are of a lone parameter
        tensors |= {f"{spelled}.{part}": tensor for part, tensor in parts.items()}
    return Renamed(tensors=tensors, left=tuple(refused))


def _spell(name: str, dialect: Dialect, role: str | None) -> str:
    prefix = dialect.prefix
    if dialect.diffusers_names:
        name = diffusers_key(name) or name
        prefix = "transformer_2." if role == LOW else prefix
    return prefix + (name.replace(".", "_") if dialect.underscores else name)


def _parts(leaf: str, delta: Delta) -> dict[str, Tensor]:
    """Leaves of one change where every kind has a spelling."""
    if isinstance(delta, DoRA):
        return {**_parts(leaf, delta.direction), "dora_scale": delta.magnitude}
    if isinstance(delta, LowRank):
        parts = {"lora_up.weight": delta.up, "lora_down.weight": delta.down}
        parts |= {} if delta.mid is None else {"lora_mid.weight": delta.mid}
        return {**parts, "alpha": _alpha(delta.scale, delta.rank)}
    if isinstance(delta, LoHa):
        parts = {f"hada_{part}": getattr(delta, part) for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
        if delta.t1 is not None and delta.t2 is not None:
            parts |= {"hada_t1": delta.t1, "hada_t2": delta.t2}
        return {**parts, "alpha": _alpha(delta.scale, delta.w1_b.shape[0])}
    if isinstance(delta, LoKr):
        return _kronecker(delta)
    if isinstance(delta, Set):
        return {"set_weight": _folded(delta.value, delta.scale)}
    assert isinstance(delta, Diff)
    return {"diff_b" if leaf == "bias" else "diff": _folded(delta.diff, delta.scale)}


def _kronecker(delta: LoKr) -> dict[str, Tensor]:
    names = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    parts = {f"lokr_{name}": t for name in names if (t := getattr(delta, name)) is not None}
    divisor = delta.w2_b if delta.w2_b is not None else delta.w1_b
    if divisor is not None:
        return {**parts, "alpha": _alpha(delta.scale, divisor.shape[0])}
    return {**parts, "lokr_w1": _folded(parts["lokr_w1"], delta.scale)}


def _peft_parts(leaf: str, delta: Delta, adapted: bool) -> dict[str, Tensor]:
    """Leaves of one change as PEFT has them; none if it cannot say this."""
    if isinstance(delta, LowRank) and delta.mid is None:
        return {"lora_A.weight": delta.down, "lora_B.weight": _folded(delta.up, delta.scale)}
    if isinstance(delta, DoRA) and not delta.by_column:
        parts = _peft_parts(leaf, delta.direction, adapted)
        if not parts:
            return {}
        kernel = [1] * (
            parts["lora_A.weight"].ndim - 2
        )  # PEFT has (1, out, 1, 1, 1) for convolutions
        shape = [1, -1, *kernel] if kernel else [-1]
        return {**parts, "lora_magnitude_vector": delta.magnitude.reshape(shape)}
    if isinstance(delta, Diff) and leaf == "bias" and adapted:
        return {"lora_B.bias": _folded(delta.diff, delta.scale)}
    return {}


def _alpha(scale: float, rank: int) -> Tensor:
    return torch.tensor(scale * rank, dtype=torch.float32)


def _folded(tensor: Tensor, scale: float) -> Tensor:
    """``scale * tensor`` in its own dtype if that is exact, else in float32."""
    if scale == 1.0:
        return tensor
    wide = scale * tensor.float()
    same = wide.to(tensor.dtype)
    return same if torch.equal(same.float(), wide) else wide
