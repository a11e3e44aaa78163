"""Weights of ComfyUI's layers for many calls.

Our blocks go over the tokens in parts. A layer of the host moves, casts and patches its weight at
every call; here it does so once for all parts, and the weight is let go with the function.
"""

from __future__ import annotations

from typing import Any

import comfy.ops
from torch import Tensor, nn

from ...wan.layers import Linear, Plain, ready

_UNCAST = getattr(comfy.ops, "uncast_bias_weight", None)
"""0.12 and later: ends the use of a weight that was cast with ``offloadable``."""

_QUANTIZED: Any = getattr(comfy.ops, "QuantizedTensor", ())
"""0.12 and later: a weight that stays packed until it is used."""


def held(layer: nn.Module, x: Tensor) -> Linear:
    """A linear layer of the network as a function of inputs like ``x``, its weight made ready once."""
    if hasattr(layer, "plain"):
        return ready(layer, x)
    if _is_changed(layer) or _multiplies_packed(layer, x):
        call: Linear = layer.__call__
        return call
    weight, bias = _cast(layer, x)
    if isinstance(weight, _QUANTIZED):
        weight = weight.dequantize().to(x.dtype)
    scale = getattr(layer, "scale_weight", None)  # scaled fp8 of 0.3
    if scale is not None:
        weight = weight * scale.to(weight)
    return Plain(weight=weight, bias=bias)


def _is_changed(layer: Any) -> bool:
    """Whether a call does something else than ComfyUI's layers do, or is looked at by someone."""
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    return bool(hooks) or "forward" in vars(layer) or not hasattr(layer, "comfy_cast_weights")


def _multiplies_packed(layer: Any, x: Tensor) -> bool:
    """Whether fp8 is multiplied as it is, with a weight that need not be fetched for it."""
    functions = layer.weight_function or layer.bias_function
    fetched = hasattr(layer, "_v") or layer.weight.device != x.device
    packed = getattr(layer, "layout_type", None) is not None and not layer._full_precision_mm
    return packed and not (
        functions or fetched or getattr(layer, "comfy_force_cast_weights", False)
    )


def _cast(layer: Any, x: Tensor) -> tuple[Tensor, Tensor | None]:
    if _UNCAST is None:
        weight, bias = comfy.ops.cast_bias_weight(layer, x)
        return weight, bias
    weight, bias, ticket = comfy.ops.cast_bias_weight(layer, x, offloadable=True)
    if hasattr(layer, "_v") or layer.weight.device != x.device:
        # It came in a buffer of the host, where the next layer's may follow.
        weight, bias = weight.clone(), None if bias is None else bias.clone()
    _UNCAST(layer, weight, bias, ticket)
    return weight, bias
