"""One random expert and one umT5 in every published packing, and the same numbers unpacked.

Written by hand and with the ``gguf`` package: nothing here asks the library how a packing looks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from wanexperts.tests.helpers import random_state
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.text import UMT5Encoder, hf_key
from wanexperts.wan.transformer import WanTransformer

from .random_weights import DIFFUSION_MODELS, TEXT, TEXT_ENCODERS

# Rows of 256: whole blocks of every GGUF type.
EXPERT = TransformerConfig(dim=256, ffn_dim=256, num_heads=2, num_layers=2, text_dim=256)
WIDE_TEXT = replace(TEXT, dim=256, attn_dim=256, ffn_dim=256)
LOW = "unpacked_low_noise.safetensors"
E4M3, E5M2, INT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
FULL_PRECISION = {"full_precision_matrix_mult": True}

State = dict[str, Tensor]
Header = dict[str, str]


def is_packed(key: str, value: Tensor) -> bool:
    """Whether files keep this tensor packed: matrices of the blocks."""
    return key.startswith("blocks.") and key.endswith(".weight") and value.ndim == 2


def _round(value: Tensor, dtype: torch.dtype, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The stored tensor and the numbers it stands for."""
    scaled = value / scale
    packed = scaled.round().clamp(-127, 127).to(dtype) if dtype == INT8 else scaled.to(dtype)
    return packed, packed.float() * scale


def _scaled(
    state: State, dtype: torch.dtype, leaf: str, *, per_channel: bool = False
) -> tuple[State, State]:
    packed, numbers = {}, {}
    top = 127.0 if dtype == INT8 else torch.finfo(dtype).max
    for key, value in state.items():
        packed[key] = numbers[key] = value
        if not is_packed(key, value):
            continue
        largest = value.abs().amax(dim=1, keepdim=True) if per_channel else value.abs().amax()
        scale = largest / top
        packed[key], numbers[key] = _round(value, dtype, scale)
        packed[key.removesuffix("weight") + leaf] = scale
    return packed, numbers


def _layers(state: State) -> list[str]:
    return [key.removesuffix(".weight") for key, value in state.items() if is_packed(key, value)]


def legacy(state: State) -> tuple[State, State, Header]:
    """ComfyUI's first form; two elements in the marker ask for full precision."""
    packed, numbers = _scaled(state, E4M3, "scale_weight")
    packed |= {f"{layer}.scale_input": torch.ones(()) for layer in _layers(state)}
    return {**packed, "scaled_fp8": torch.zeros(2, dtype=E4M3)}, numbers, {}


def comfy_quant(state: State, dtype: torch.dtype = E4M3) -> tuple[State, State, Header]:
    """ComfyUI's present form: a note beside each layer."""
    packed, numbers = _scaled(state, dtype, "weight_scale")
    note = json.dumps({"format": str(dtype).removeprefix("torch."), **FULL_PRECISION}).encode()
    for layer in _layers(state):
        packed[f"{layer}.comfy_quant"] = torch.frombuffer(bytearray(note), dtype=torch.uint8)
    return packed, numbers, {}


def comfy_header(state: State) -> tuple[State, State, Header]:
    """The same notes in the header; the scales have one axis."""
    packed, numbers = _scaled(state, E4M3, "weight_scale")
    packed = {k: v.reshape(1) if k.endswith("_scale") else v for k, v in packed.items()}
    note = {layer: {"format": "float8_e4m3fn"} for layer in _layers(state)}
    header = json.dumps({"format_version": "1.0", "layers": note})
    return packed, numbers, {"_quantization_metadata": header}


def plain_fp8(state: State) -> tuple[State, State, Header]:
    """Every matrix and table cast, without scales."""
    packed = {k: v.to(E4M3) if v.ndim == 2 else v for k, v in state.items()}
    return packed, {k: v.float() for k, v in packed.items()}, {}


def per_channel(dtype: torch.dtype) -> Callable[[State], tuple[State, State, Header]]:
    """LightX2V's form: a scale for each output channel."""

    def write(state: State) -> tuple[State, State, Header]:
        return *_scaled(state, dtype, "weight_scale", per_channel=True), {}

    return write


SAFETENSORS: dict[str, Callable[[State], tuple[State, State, Header]]] = {
    "fp8-legacy": legacy,
    "fp8-comfy-quant": comfy_quant,
    "fp8-e5m2": lambda state: comfy_quant(state, E5M2),
    "fp8-header": comfy_header,
    "fp8-plain": plain_fp8,
    "fp8-channel": per_channel(E4M3),
    "int8-channel": per_channel(INT8),
}
HALVES = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block of a type that the package cannot write keeps its float16 numbers."""
GGUF = ("F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")
FORMS = (*SAFETENSORS, *GGUF)


def packed_name(form: str) -> str:
    """File of the high-noise expert in one form."""
    return f"{form}_high_noise.{'gguf' if form in GGUF else 'safetensors'}"


def numbers_name(form: str) -> str:
    """The same numbers in float32."""
    return f"numbers_{form}_high_noise.safetensors"


def _blocks(form: str, value: Tensor) -> np.ndarray:
    kind = gguf.GGMLQuantizationType[form]
    if form not in HALVES:
        return gguf.quants.quantize(value.numpy(), kind)
    # Random blocks of small numbers: the package reads these types but does not write them.
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(value.numel())
    rows = rng.integers(0, 256, (value.shape[0], value.shape[1] // block * size), dtype=np.uint8)
    flat = rows.reshape(-1, size)
    for at in HALVES[form]:
        halves = (rng.standard_normal(len(flat)) / 20000).astype(np.float16)
        flat[:, at : at + 2] = halves.view(np.uint8).reshape(-1, 2)
    return rows


def write_gguf(
    path: Path, form: str, state: Mapping[str, Tensor], names: Mapping[str, str]
) -> State:
    """A GGUF file of ``state``, matrices packed, each tensor under ``names``; returns its numbers."""
    writer = gguf.GGUFWriter(path, "wan")
    kind = gguf.GGMLQuantizationType[form]
    numbers = {}
    for key, value in state.items():
        if value.ndim == 2 and value.shape[1] % 256 == 0:
            rows = _blocks(form, value)
            writer.add_tensor(names[key], rows, raw_dtype=kind)
            numbers[key] = torch.from_numpy(gguf.quants.dequantize(rows, kind).copy())
        else:
            writer.add_tensor(names[key], value.numpy())
            numbers[key] = value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return numbers


def stored_dtypes(path: Path) -> dict[str, torch.dtype]:
    """How each tensor lies in a file; packed GGUF blocks are bytes."""
    if path.suffix != ".gguf":
        return {key: value.dtype for key, value in load_file(path).items()}
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: plain.get(t.tensor_type.name, torch.uint8) for t in tensors}


def write_experts(models: Path) -> None:
    """Every form of one expert, its numbers, and a partner for all of them."""
    folder = models / DIFFUSION_MODELS
    state = random_state(WanTransformer(EXPERT), 20)
    for form, write in SAFETENSORS.items():
        packed, numbers, header = write(state)
        save_file(packed, folder / packed_name(form), metadata={"format": "pt", **header})
        save_file(numbers, folder / numbers_name(form))
    for form in GGUF:
        numbers = write_gguf(folder / packed_name(form), form, state, {key: key for key in state})
        save_file(numbers, folder / numbers_name(form))
    save_file(random_state(WanTransformer(EXPERT), 21), folder / LOW)


TEXT_FORMS = ("fp8-legacy", "fp8-comfy-quant", "fp8-plain", "int8-channel", "Q8_0", "Q6_K")


def text_name(form: str) -> str:
    """File of the umT5 encoder in one form; its folder holds the tokenizer."""
    return f"packed/umt5_{form}.{'gguf' if form in GGUF else 'safetensors'}"


def text_numbers_name(form: str) -> str:
    """The same numbers in float32."""
    return f"packed/numbers_umt5_{form}.safetensors"


def write_texts(models: Path, spiece: Tensor) -> None:
    """The umT5 encoder in transformers' names (GGUF: official ones), its tokenizer beside or inside."""
    folder = models / TEXT_ENCODERS
    (folder / "packed").mkdir(parents=True)
    state = random_state(UMT5Encoder(WIDE_TEXT), 22)
    names = {key: hf_key(key) or key for key in state}
    (folder / "packed" / "spiece.model").write_bytes(bytes(spiece.tolist()))
    for form in TEXT_FORMS:
        if form in GGUF:
            numbers = write_gguf(folder / text_name(form), form, state, {key: key for key in state})
        else:
            packed, numbers, header = SAFETENSORS[form](state)
            packed = {_renamed(key, names): value for key, value in packed.items()}
            save_file(packed, folder / text_name(form), metadata=header or None)
        save_file({**numbers, "spiece_model": spiece}, folder / text_numbers_name(form))


def _renamed(key: str, names: Mapping[str, str]) -> str:
    layer, _, leaf = key.rpartition(".")
    if f"{layer}.weight" in names:
        return names[f"{layer}.weight"].removesuffix("weight") + leaf
    return names.get(key, key)
