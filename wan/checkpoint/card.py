"""A format card: what a file is, how it is stored, and what that means when it runs."""

from __future__ import annotations

import math
from collections import Counter

from ..files import TensorInfo
from ..keys.roles import HIGH, LOW
from ..quant import packed_shape
from .identity import Identity, identify
from .layouts import KINDS, SPIECE_KEY, Checkpoint
from .load import find_pieces
from .sizes import takes_normalized

_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "F8_E4M3": 8, "F8_E5M2": 8, "I8": 8, "U8": 8, "BOOL": 8,
}  # fmt: skip
_WORDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I8": "int8", "U8": "bytes",
}  # fmt: skip
_ROLES = {HIGH: "high noise", LOW: "low noise"}
_SOURCES = {"header": "by its header", "folder": "by its folder", "name": "by its name"}


def format_card(checkpoint: Checkpoint) -> str:
    """What a file is and how it is stored, one fact a line."""
    lines = [
        f"{checkpoint.name}: {_what(checkpoint)}",
        f"  layout: {checkpoint.layout}, {checkpoint.container}, {_size(checkpoint.nbytes)}",
        f"  weights: {', '.join(_weights(checkpoint))}",
        f"  runs: {_runs(checkpoint)}",
        *_tokenizer(checkpoint),
    ]
    return "\n".join(lines)


def _what(checkpoint: Checkpoint) -> str:
    if checkpoint.is_tiny:
        space = "normalised" if takes_normalized(checkpoint) else "raw"
        return f"tiny decoder for drafts and previews, of {space} Wan2.1 latents by its name"
    if checkpoint.kind != "transformer":
        return KINDS[checkpoint.kind].removeprefix("a ").removeprefix("an ")
    known = identify(checkpoint)
    return f"{known.model} expert, {_role(known)}"


def _role(known: Identity) -> str:
    if known.role is None:
        return "high or low noise is not told by header, folder or name, and weights do not tell it"
    return f"{_ROLES[known.role]} {_SOURCES[known.role_source]}"


def _weights(checkpoint: Checkpoint) -> list[str]:
    """Each way of storing, with how many tensors and bytes are stored so, the largest first."""
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    for key, info in checkpoint.tensors.items():
        if key == SPIECE_KEY:
            continue
        name = _stored_as(checkpoint, key, info)
        count[name] += 1
        size[name] += _nbytes(checkpoint, key, info)
    told = [f"{count[name]} x {name} ({_size(size[name])})" for name, _ in size.most_common()]
    return [*told, "tokenizer inside"] if SPIECE_KEY in checkpoint.tensors else told


def _stored_as(checkpoint: Checkpoint, key: str, info: TensorInfo) -> str:
    quant = checkpoint.quants.get(key.removesuffix(".weight"))
    if quant is None:
        return _WORDS.get(info.dtype, info.dtype)
    if quant.scale_shape is None:
        return quant.format
    scaled = "tensor" if math.prod(quant.scale_shape) == 1 else "channel"
    return f"{quant.format} scaled per {scaled}"


def _nbytes(checkpoint: Checkpoint, key: str, info: TensorInfo) -> int:
    if quant := checkpoint.quants.get(key.removesuffix(".weight")):
        shape, dtype = packed_shape(quant)
        return math.prod(shape) * dtype.itemsize
    return math.prod(info.shape) * _BITS.get(info.dtype, 8) // 8


def _runs(checkpoint: Checkpoint) -> str:
    quants = checkpoint.quants.values()
    if checkpoint.kind == "vae":
        return "as it is; layers cast where they compute in another format"
    if checkpoint.kind == "text_encoder":
        return f"{'unpacked' if quants else 'cast'} layer by layer; computed in float32"
    per_tensor = all(
        quant.scale_shape is not None and math.prod(quant.scale_shape) == 1 for quant in quants
    )
    formats = {quant.format for quant in quants}
    if formats and formats <= {"float8_e4m3fn", "float8_e5m2"} and per_tensor:
        if any(quant.full_precision for quant in quants):
            return "unpacked layer by layer, as the file asks for full-precision products"
        return (
            "where ComfyUI has fp8 layers, fp8 products on cards with fp8 units (compute capability "
            "8.9 and up); elsewhere unpacked layer by layer"
        )
    if formats:
        return "unpacked layer by layer at each use; smaller, not faster"
    return _plain(checkpoint)


def _plain(checkpoint: Checkpoint) -> str:
    size: Counter[str] = Counter()
    for info in checkpoint.tensors.values():
        size[info.dtype] += math.prod(info.shape) * _BITS.get(info.dtype, 8) // 8
    if any(dtype.startswith("F8") for dtype in size):
        return "cast layer by layer at each use; smaller, not faster"
    if size["F32"] * 2 > size.total():
        return (
            "cast layer by layer; on a GPU ComfyUI converts it once at load, into memory of its own "
            f"(about {_size(size['F32'] // 2)})"
        )
    return "as it is; layers cast where they compute in another format"


def _tokenizer(checkpoint: Checkpoint) -> list[str]:
    """A line for a text encoder that has none."""
    if checkpoint.kind != "text_encoder":
        return []
    try:
        find_pieces(checkpoint)
    except (OSError, ValueError) as error:
        return [f"  tokenizer: none; {error}"]
    return []


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB"
