"""Which tensors of a file are packed weights, which are their scales, and which say how.

Forms read: ComfyUI's legacy ``scaled_fp8`` with ``scale_weight``, its ``comfy_quant`` tensors and
``_quantization_metadata`` header, LightX2V's ``weight_scale`` per output channel (fp8, int8), GGUF.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from ..files import TensorInfo, read_tensors, shown
from ..quant import Quant, quant_format

LEGACY_MARKER = "scaled_fp8"
HEADER_ENTRY = "_quantization_metadata"
SCALES = {
    "scale_weight": "weight_scale",
    "weight_scale": "weight_scale",
    "scale_input": "input_scale",
    "input_scale": "input_scale",
}
READ_WITH_SCALES = ("float8_e4m3fn", "float8_e5m2", "int8")
UNREAD = {
    "weight_scale_2": "NVFP4",
    "qweight": "GPTQ or AWQ",
    "qzeros": "GPTQ or AWQ",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "wscales": "SVDQuant",
    "smooth_factor": "SVDQuant",
    "weight_zero": "an integer packing with zero points",
}
"""Leaves of packings that are not read, and their names."""
NOTE_LIMIT = 1 << 16
"""Bytes of what a file says of one layer; ComfyUI writes less than 100."""
_OF_BLOCK = re.compile(r"(blocks\.\d+\.(.+))\.weight")
"""The weight of a layer of a block: the layer, and its name within the block."""
WAY_OUT = "use the bf16, fp16, scaled fp8, int8 or GGUF file of the same model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """A file's tensors taken apart: weights, how some are packed, and their scales."""

    tensors: Mapping[str, TensorInfo]
    quants: Mapping[str, Quant]
    scales: Mapping[str, TensorInfo]


def find_packing(
    path: Path, names: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> Packing:
    """Take ``names`` (official keys) apart.

    Raises:
        ValueError: packed in a way that is not read, or a scale that fits no weight.
    """
    tensors: dict[str, TensorInfo] = {}
    scales: dict[str, TensorInfo] = {}
    told: dict[str, TensorInfo] = {}
    for key, info in names.items():
        layer, _, leaf = key.rpartition(".")
        if leaf in UNREAD:
            raise ValueError(
                f"{shown(path)} is quantised as {UNREAD[leaf]}, which is not read; {WAY_OUT}"
            )
        if leaf in SCALES:
            scale = f"{layer}.{SCALES[leaf]}"
            if scale in scales:
                raise ValueError(
                    f"{shown(path)} has two scales for {shown(layer)} ({shown(scales[scale].name)}, "
                    f"{shown(info.name)}), of which one can be right; download it again"
                )
            scales[scale] = info
        elif leaf == "comfy_quant":
            told[layer] = info
        elif key != LEGACY_MARKER:
            tensors[key] = info
    notes = {**_header_notes(path, tensors, metadata), **_tensor_notes(path, told)}
    # Two elements in the marker are ComfyUI's way to ask for full-precision products everywhere.
    everywhere = LEGACY_MARKER in names and names[LEGACY_MARKER].shape == (2,)
    quants = _quants(path, tensors, scales)
    _check_notes(path, notes, tensors, quants)
    _check_blocks(path, tensors, quants)
    for layer, quant in quants.items():
        note = notes.get(layer, {})
        asked = everywhere or note.get("full_precision_matrix_mult") is True
        quants[layer] = replace(quant, full_precision=asked)
    for key in scales:
        if key.rpartition(".")[0] not in quants:
            raise ValueError(
                f"{shown(path)} has {shown(key)} but no quantised weight for it; download it again"
            )
    return Packing(tensors=tensors, quants=quants, scales=scales)


def _quants(
    path: Path, tensors: Mapping[str, TensorInfo], scales: Mapping[str, TensorInfo]
) -> dict[str, Quant]:
    quants: dict[str, Quant] = {}
    for key, info in tensors.items():
        layer, _, leaf = key.rpartition(".")
        name = quant_format(info.dtype)
        if leaf != "weight" or name is None:
            continue
        scale = scales.get(f"{layer}.weight_scale")
        if scale is None and name in READ_WITH_SCALES:
            if name == "int8":
                raise ValueError(f"{shown(path)}: {shown(key)} is int8 without a scale; {WAY_OUT}")
            continue  # plain fp8 is a number format like any other
        if scale is not None:
            _check_scale(path, key, info, scale)
        quants[layer] = Quant(
            format=name, shape=info.shape, scale_shape=None if scale is None else scale.shape
        )
    return quants


def _check_notes(
    path: Path,
    notes: Mapping[str, Mapping[str, Any]],
    tensors: Mapping[str, TensorInfo],
    quants: Mapping[str, Quant],
) -> None:
    """A layer that is told to be packed is packed so."""
    for layer, note in notes.items():
        weight, quant = tensors.get(f"{layer}.weight"), quants.get(layer)
        if weight is not None and (quant is None or quant.format != note["format"]):
            lacks = "without a scale" if quant_format(weight.dtype) == note["format"] else ""
            raise ValueError(
                f"{shown(path)} says that {shown(layer)} is quantised as {note['format']}, but it is "
                f"{lacks or weight.dtype}; download it again"
            )


def _check_blocks(
    path: Path, tensors: Mapping[str, TensorInfo], quants: Mapping[str, Quant]
) -> None:
    """A matrix that is scaled in one block and 8-bit without a scale in another has lost its scale."""
    scaled: set[str] = set()
    bare: dict[str, str] = {}
    for key, info in tensors.items():
        match = _OF_BLOCK.fullmatch(key)
        if match is None or quant_format(info.dtype) not in READ_WITH_SCALES:
            continue
        if match[1] in quants:
            scaled.add(match[2])
        else:
            bare.setdefault(match[2], key)
    for leaf, key in bare.items():
        if leaf in scaled:
            raise ValueError(
                f"{shown(path)}: {shown(key)} has no scale, but the same layer of other blocks has one; "
                "download it again"
            )


def _check_scale(path: Path, key: str, weight: TensorInfo, scale: TensorInfo) -> None:
    rows = weight.shape[0] if weight.shape else 0
    if scale.shape not in ((), (1,), (rows,), (rows, 1), (1, 1)):
        raise ValueError(
            f"{shown(path)}: the scale of {shown(key)} has shape {scale.shape}; one number, or one for each of "
            f"its {rows} rows is read; {WAY_OUT}"
        )
    if scale.dtype not in ("F64", "F32", "F16", "BF16"):
        raise ValueError(
            f"{shown(path)}: the scale of {shown(key)} is {scale.dtype}, not a float; {WAY_OUT}"
        )


def _header_notes(
    path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """What the header says of each layer, by official key."""
    if HEADER_ENTRY not in metadata:
        return {}
    try:
        layers = json.loads(metadata[HEADER_ENTRY])["layers"].items()
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{shown(path)}: its header's {HEADER_ENTRY} is damaged; download it again"
        ) from error
    official = {info.name.removesuffix(".weight"): key for key, info in tensors.items()}
    return {
        official.get(name, name).removesuffix(".weight"): _checked(path, name, note)
        for name, note in layers
    }


def _tensor_notes(path: Path, told: Mapping[str, TensorInfo]) -> dict[str, dict[str, Any]]:
    """What ``comfy_quant`` tensors (bytes of JSON) say of each layer."""
    notes: dict[str, dict[str, Any]] = {}
    for info in told.values():
        if info.dtype != "U8" or prod(info.shape) > NOTE_LIMIT:
            raise ValueError(f"{shown(path)}: {shown(info.name)} is damaged; download it again")
    for file in {info.file for info in told.values()}:
        layers = {layer: info.name for layer, info in told.items() if info.file == file}
        found = read_tensors(file, layers.values())
        for layer, name in layers.items():
            try:
                note = json.loads(found[name].numpy().tobytes())
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{shown(path)}: {shown(name)} is damaged; download it again"
                ) from error
            notes[layer] = _checked(path, layer, note)
    return notes


def _checked(path: Path, layer: str, note: Any) -> dict[str, Any]:
    name = note.get("format") if isinstance(note, dict) else None
    if name not in READ_WITH_SCALES:
        raise ValueError(
            f"{shown(path)}: {shown(layer)} is quantised as '{shown(name)}', which is not read; {WAY_OUT}"
        )
    return dict(note)
