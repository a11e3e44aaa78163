"""fp8 weights with one scale in ComfyUI's own layers, whose making and file keys depend on its version.

Read and tested: 0.3.64 (``SCALED``) and 0.12.1 (``MIXED``). What another version has is told by the
arguments of its functions; where it has neither, the weights stay in this pack's own packed layers.
"""

from __future__ import annotations

import inspect
import json
from functools import lru_cache
from math import prod
from types import SimpleNamespace
from typing import Any

import comfy.ops
import torch
from torch import Tensor, nn

from ...wan.quant import FORMATS, Quant

FP8 = ("float8_e4m3fn", "float8_e5m2")
_PICKED = inspect.signature(comfy.ops.pick_operations).parameters
_MIXED = inspect.signature(getattr(comfy.ops, "mixed_precision_ops", lambda: None)).parameters
SCALED = "scaled_fp8" in _PICKED
"""As in 0.3.64: one class of layers for one fp8 format."""
MIXED = "quant_config" in _MIXED
"""As in 0.12.1: layers that are told by the state dict what they hold."""


def suits(layer: nn.Module, quant: Quant) -> bool:
    """Whether this ComfyUI has a layer for a ``layer`` packed so."""
    per_tensor = quant.scale_shape is not None and prod(quant.scale_shape) == 1
    linear = hasattr(layer, "out_features")
    return (SCALED or MIXED) and linear and per_tensor and quant.format in FP8


def make(layer: nn.Module, quant: Quant, compute: torch.dtype) -> nn.Module:
    """ComfyUI's layer in place of ``layer``, for products in ``compute``; its weights come later."""
    # The newer layers put what they load on their own device, which must not be meta then.
    device = torch.device("meta") if SCALED else None
    operations = _operations(FORMATS[quant.format].dtype, compute)
    made: nn.Module = operations.Linear(
        layer.in_features, layer.out_features, bias=has_bias(layer), device=device
    )
    return made


def rename(state: dict[str, Tensor], name: str, *, quant: Quant, full_precision: bool) -> None:
    """Give the tensors of the layer ``name`` the keys under which its layer of :func:`make` loads them.

    ``full_precision`` asks for dequantised products where the device could multiply fp8.
    """
    scale = state.pop(f"{name}.weight_scale").reshape(()).float()
    if SCALED:
        state[f"{name}.scale_weight"] = scale
        state.pop(f"{name}.input_scale", None)
        return
    state[f"{name}.weight_scale"] = scale
    note = {"format": quant.format, "full_precision_matrix_mult": full_precision}
    written = json.dumps(note).encode()
    state[f"{name}.comfy_quant"] = torch.frombuffer(bytearray(written), dtype=torch.uint8)


def has_bias(layer: nn.Module) -> bool:
    """Whether a linear layer of ComfyUI has a bias; some make it only when they are loaded."""
    return layer.bias is not None or getattr(layer, "comfy_need_lazy_init_bias", False)


@lru_cache(maxsize=8)
def _operations(fp8: torch.dtype, compute: torch.dtype) -> Any:
    if SCALED:
        return comfy.ops.pick_operations(fp8, compute, scaled_fp8=fp8)
    config = SimpleNamespace(quant_config={"mixed_ops": True})
    return comfy.ops.pick_operations(None, compute, model_config=config)
