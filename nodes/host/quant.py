"""Packed weights inside ComfyUI: in its own layers where it has them, else in ours, made to stream."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor, nn

from ...wan.quant import FORMATS, Quant, QuantEmbedding, QuantLinear, dequantise, replace_layers
from ...wan.quant.layers import PackedLayer
from . import fp8

META = torch.device("meta")
COPIES = 4
"""Weights in float32 that are alive while one is unpacked and patched: the numbers, which its layer
holds, and of the second of several LoRAs what it is given, what it adds and what comes out. One LoRA
makes do with three, none with one; but ComfyUI asks for memory before a model knows its patches."""


class HostPacked(PackedLayer):
    """What ComfyUI's loading asks of a layer that it may leave on the CPU.

    The packed weight is a buffer, so the host moves it but never writes into it; patches act on the
    numbers (:mod:`.patches`).
    """

    comfy_cast_weights = True
    bias_function: list[Any] = []

    @property
    def weight_function(self) -> list[Any]:
        """Always empty: what the host puts there is meant for numbers, not for packed bytes."""
        return []

    @weight_function.setter
    def weight_function(self, value: list[Any]) -> None:
        pass

    def convert_weight(self, weight: Tensor, inplace: bool = False, **_: Any) -> Tensor:
        """The numbers of ``weight``, stored values that were made floats: what model merging reads."""
        stored = weight.to(FORMATS[self.quant.format].dtype)
        return dequantise(stored, self.weight_scale, self.quant, torch.float32)

    def set_weight(self, *_: Any, **__: Any) -> None:
        """Refused: numbers do not go back into packed bytes."""
        raise ValueError(
            f"a LoRA on a schedule (hook) cannot change weights packed as {self.quant.format}; "
            "apply it with a LoRA loader instead, or use the fp16 or scaled fp8 file"
        )


class HostQuantLinear(HostPacked, QuantLinear):
    """:class:`QuantLinear`; its bias is an ordinary weight of the host."""

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The whole weight and the bias as an input like ``x`` needs them."""
        return self.numbers(x.device, x.dtype), self._bias(x)

    def _bias(self, input: Tensor) -> Tensor | None:
        if self.bias is None:
            return None
        functions = self.bias_function
        bias: Tensor = mm.cast_to(self.bias, input.dtype, input.device, copy=bool(functions))
        for function in functions:
            bias = function(bias)
        return bias


class HostQuantEmbedding(HostPacked, QuantEmbedding):
    """:class:`QuantEmbedding`; rows are looked up where the table is."""

    bias = None  # ComfyUI asks every layer for it

    def forward(self, input: Tensor) -> Tensor:
        """Rows ``(..., dim)`` of the ids ``(...)``, on their device."""
        return super().forward(input.to(self.weight.device)).to(input.device)


def has_packed_layers(network: nn.Module) -> bool:
    """Whether some weights of ``network`` are buffers, which not every way of the host pages or saves."""
    return any(isinstance(module, PackedLayer) for module in network.modules())


def unpacking_bytes(network: nn.Module) -> int:
    """Peak bytes of using one packed weight beside its packed bytes, for the largest of ``network``."""
    sizes = (prod(m.quant.shape) for m in network.modules() if isinstance(m, PackedLayer))
    return COPIES * torch.float32.itemsize * max(sizes, default=0)


def count_parameters(weights: Mapping[str, Tensor], quants: Mapping[str, Quant]) -> int:
    """How many numbers ``weights`` hold, whatever they are packed as."""
    packed = {f"{layer}.weight" for layer in quants}
    plain = sum(tensor.numel() for key, tensor in weights.items() if key not in packed)
    return plain + sum(prod(quant.shape) for quant in quants.values())


def load_weights(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    quants: Mapping[str, Quant],
    *,
    compute: torch.dtype,
    full_precision: bool = False,
) -> None:
    """Put ``weights`` into a network built on the meta device; nothing is copied or unpacked.

    Args:
        network: its layers are of ``comfy.ops.manual_cast``.
        weights: official keys, with ``<layer>.weight_scale`` (and perhaps ``.input_scale``).
        quants: layer -> how its weight is packed.
        compute: dtype in which the network's matrix products run.
        full_precision: never multiply in fp8, even where the device could.

    Raises:
        ValueError: a layer cannot be packed so.
    """
    state = dict(weights)
    quants = {**_fp8_tables(network, state), **quants}
    hosted = {
        name: quant
        for name, quant in quants.items()
        if fp8.suits(network.get_submodule(name), quant)
    }
    replace_layers(network, hosted, partial(fp8.make, compute=compute))
    for name, quant in hosted.items():
        exact = full_precision or quant.full_precision
        fp8.rename(state, name, quant=quant, full_precision=exact)
    ours = {name: quant for name, quant in quants.items() if name not in hosted}
    replace_layers(network, ours, _packed)
    for name in ours:
        state.pop(f"{name}.input_scale", None)
    network.load_state_dict(state, assign=True)
    network.eval().requires_grad_(False)


def _fp8_tables(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Quant]:
    """Embeddings in plain fp8, which not every device can look up rows in as they are."""
    tables = {
        name: state[f"{name}.weight"]
        for name, module in network.named_modules()
        if hasattr(module, "num_embeddings")
    }
    return {
        name: Quant(format=str(table.dtype).removeprefix("torch."), shape=tuple(table.shape))
        for name, table in tables.items()
        if str(table.dtype).removeprefix("torch.") in fp8.FP8
    }


def _packed(layer: nn.Module, quant: Quant) -> nn.Module:
    if not hasattr(layer, "out_features"):
        return HostQuantEmbedding(quant, device=META)
    bias = nn.Parameter(torch.empty(quant.shape[0], device=META)) if fp8.has_bias(layer) else None
    return HostQuantLinear(quant, bias, META)
