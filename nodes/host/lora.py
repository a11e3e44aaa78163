"""A LoRA on a MODEL: found on its parameters, measured, and added as patches of the host."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import torch
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor, nn

from ...wan.lora import Delta, Resolved, Section, resolve
from ...wan.quant.layers import PackedLayer
from .model import HostModel
from .patches import passed_over

PREFIX = "diffusion_model."
SCALES = ("weight_scale", "scale_weight", "input_scale", "scale_input", "comfy_quant")
"""What layers for packed weights keep beside them."""
LANDMARK = "blocks.0.self_attn.q.weight"


class DeltaPatch(WeightAdapterBase):
    """One :class:`Delta` in the form of the host's own LoRAs: every dialect has one definition."""

    name = "wan_experts"

    def __init__(self, delta: Delta) -> None:
        """The factors stay mapped from their file."""
        self.delta = delta
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
    clone.add_patches({key: DeltaPatch(delta) for key, delta in patches.items()}, strength)
    return clone


def weight_of(patcher: Any, name: str) -> Tensor:
    """An official parameter as numbers, without the patches of ``patcher``; float32."""
    key = f"{PREFIX}{name}"
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if (kept := patcher.backup.get(key)) is not None:
        weight = kept.weight
    wide = mm.cast_to_device(weight, weight.device, torch.float32, copy=True)
    return wide if convert is None else convert(wide, inplace=True)


def _parameters(patcher: Any) -> dict[str, tuple[int, ...]]:
    """Official names of a MODEL's parameters and their shapes, unpacked."""
    network = getattr(patcher.model, "diffusion_model", None)
    if network is None:
        return {}
    found = {
        key: tuple(value.shape)
        for key, value in network.state_dict().items()
        if key.rpartition(".")[2] not in SCALES
    }
    packed = {
        f"{path}.weight": module.quant.shape
        for path, module in network.named_modules()
        if isinstance(module, PackedLayer)
    }
    return {**found, **packed}
