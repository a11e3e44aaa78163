"""Weights that are stored smaller than they are used: fp8, int8 and GGUF, unpacked layer by layer."""

from __future__ import annotations

from .formats import FORMATS, Format, Quant, dequantise, packed_shape, quant_format
from .layers import (
    PackedLayer,
    QuantEmbedding,
    QuantLinear,
    layer_shape,
    packed_layer,
    replace_layers,
)

__all__ = [
    "FORMATS",
    "Format",
    "PackedLayer",
    "Quant",
    "QuantEmbedding",
    "QuantLinear",
    "dequantise",
    "layer_shape",
    "packed_layer",
    "packed_shape",
    "quant_format",
    "replace_layers",
]
