"""A LoRA on a MODEL: found on its parameters, measured, and added as patches of the host."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from ...wan.files import shown
from ...wan.lora import Delta, Resolved, Section, relative_norm, resolve
from ...wan.manifest import Mark, file_mark
from ...wan.quant.layers import PackedLayer, layer_shape
from . import files
from .model import HostModel
from .patches import passed_over

PREFIX = "diffusion_model."
SCALES = ("weight_scale", "scale_weight", "input_scale", "scale_input", "comfy_quant")
"""What layers for packed weights keep beside them."""
KEPT = 16
"""Sizes that are remembered of each model."""
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
LANDMARK = "blocks.0.self_attn.q.weight"


log = logging.getLogger(__name__)

_sizes: WeakKeyDictionary[nn.Module, dict[tuple[str, ...], str]] = WeakKeyDictionary()


class DeltaPatch(WeightAdapterBase):
    """One :class:`Delta` in the form of the host's own LoRAs: every dialect has one definition."""

    name = "wan_experts"

    def __init__(self, delta: Delta, mark: Mark | None = None) -> None:
        """The factors stay mapped from their file, which ``mark`` says."""
        self.delta, self.mark = delta, mark
        self.loaded_keys: set[str] = set()
        self.weights: tuple[Tensor, ...] = ()

    def calculate_weight(
        self, weight: Tensor, key: str, strength: float, *_: Any, **__: Any
    ) -> Tensor:
        """The changed weight, in the dtype it came in."""
        return self.delta.apply(weight, strength).to(weight.dtype)


def find_on(patcher: Any, section: Section, which: str) -> Resolved:
    """What a LoRA changes on a MODEL; ``which`` names that input in errors.

    Raises:
        ValueError: no Wan MODEL, or a LoRA of another network.
    """
    names = _parameters(patcher)
    if LANDMARK not in names:
        raise ValueError(f"{which} is not a Wan MODEL; connect a diffusion model of the Wan family")
    return resolve(section, names)


def add_lora(patcher: Any, resolved: Resolved, strength: float) -> Any:
    """A clone of ``patcher`` with the LoRA on it.

    On the network of this pack every change is a patch of the host. On ComfyUI's own, which drops
    patches on ``modulation``, those parameters are exchanged for as long as the clone is in use.
    """
    clone = patcher.clone()
    patches = {f"{PREFIX}{name}": delta for name, delta in resolved.deltas.items()}
    dropped: set[str] = set()
    if not isinstance(patcher.model, HostModel):
        dropped = {key for _, _, key in passed_over(patcher.model)}
    for key in dropped & patches.keys():
        weight = clone.get_model_object(key)
        changed = patches.pop(key).apply(weight.detach(), strength)
        clone.add_object_patch(key, nn.Parameter(changed, requires_grad=False))
    mark = file_mark(resolved.section.path)
    clone.add_patches({key: DeltaPatch(delta, mark) for key, delta in patches.items()}, strength)
    return clone


def weight_of(patcher: Any, name: str) -> Tensor:
    """An official parameter as numbers, without the patches of ``patcher``; float32."""
    key = f"{PREFIX}{name}"
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if (kept := patcher.backup.get(key)) is not None:
        weight = kept.weight
    wide = mm.cast_to_device(weight, weight.device, torch.float32, copy=True)
    return wide if convert is None else convert(wide, inplace=True)


def size_on(patcher: Any, section: Section, resolved: Resolved) -> str:
    """:func:`relative_norm` of a LoRA in words; weights are read only if the file or the model is new.

    Weights that another pack keeps packed, in ways of its own, are left out.
    """
    known = _sizes.setdefault(patcher.model, {})
    key = (files.stamp(section.path), *section.tensors)
    if key not in known:
        while len(known) >= KEPT:
            del known[next(iter(known))]
        known[key] = _measure(patcher, section, resolved)
    return known[key]


def _measure(patcher: Any, section: Section, resolved: Resolved) -> str:
    shapes = _parameters(patcher)
    plain = {
        name: delta
        for name, delta in resolved.deltas.items()
        if _is_readable(patcher, name, shapes[name])
    }
    if not plain:
        return "not measured, because the weights are packed by another pack"
    log.info("measuring %s on a model", shown(section.path.name))
    return str(
        relative_norm(replace(resolved, deltas=plain), lambda name: weight_of(patcher, name))
    )


def _is_readable(patcher: Any, name: str, shape: tuple[int, ...]) -> bool:
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, f"{PREFIX}{name}")
    # Not ``.shape``, which a packed tensor of another pack may answer with the unpacked one.
    whole = weight.is_floating_point() and tuple(weight.size()) == shape
    return whole or convert is not None


def is_rounded(patcher: Any, resolved: Resolved) -> bool:
    """Whether ComfyUI writes some of the weights that a LoRA changes back into fp8.

    Read and tested in 0.3.64 and 0.12.1: it does for all that it keeps resident.
    """
    network = patcher.model.diffusion_model
    for name in resolved.deltas:
        path, _, leaf = name.rpartition(".")
        module = network.get_submodule(path)
        weight = getattr(module, leaf)
        stored = getattr(weight, "_qdata", weight).dtype
        if not isinstance(module, PackedLayer) and stored in FP8:
            return True
    return False


def _parameters(patcher: Any) -> dict[str, tuple[int, ...]]:
    """Official names of a MODEL's parameters and their shapes, unpacked.

    Layers say their shape themselves: what a pack for packed weights has in its state dict, or even
    in its parameters, may be the shape of the bytes.
    """
    network = getattr(patcher.model, "diffusion_model", None)
    if network is None:
        return {}
    found = {
        name: tuple(value.shape)
        for name, value in network.named_parameters()
        if name.rpartition(".")[2] not in SCALES
    }
    layers = {
        f"{path}.weight": shape
        for path, module in network.named_modules()
        if (shape := layer_shape(module)) and getattr(module, "weight", None) is not None
    }
    return {**found, **layers}
