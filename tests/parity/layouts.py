"""Weight files as the programs of others write them, and the numbers they stand for.

Names, files and unpacked weights come from diffusers, transformers, huggingface_hub, gguf and
safetensors, or from the published lists of names; nothing here uses this project's key tables,
converter, readers or unpacking. Weights are held by official name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor

State = dict[str, Tensor]
Encode = Callable[[str, Tensor], tuple[State, Tensor]]
"""(name, weight) -> the tensors that are stored for it, and the weight in float32 that they stand for."""
Rename = Callable[[str], str]
Kind = gguf.GGMLQuantizationType

LINEAR = ("self_attn.", "cross_attn.", ".ffn.", ".attn.")
"""Parts of the names of the matrices that every quantiser packs."""
PUBLISHED_DTYPES = {torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}
PICKLED = ".pth"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file or folder, and the weights in float32 that it stands for."""

    path: Path
    meaning: State


def random_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int, dtype: torch.dtype = torch.float32
) -> State:
    """Weights of a scale at which no layer dies, none explodes and no two are alike.

    One pool of numbers is read round and round: drawing the numbers of a wide model takes a minute.
    """
    pool = torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
    state, begin = {}, 0
    for key, shape in shapes.items():
        count = math.prod(shape)
        begin = (begin + 4999) % len(pool)
        rounds = -(-(begin + count) // len(pool))
        values = pool.repeat(rounds)[begin : begin + count].view(shape)
        if "norm" in key or key.endswith("gamma"):
            values = 1 + 0.2 * values
        elif len(shape) == 1 or key.endswith("modulation") or "pos_embedding" in key:
            values = 0.2 * values
        elif "token_embedding" not in key:
            values = values / math.sqrt(math.prod(shape[1:]))
        state[key] = values.to(dtype, copy=True)
    return state


# How one weight is stored.


def plain(dtype: torch.dtype) -> Encode:
    """Every weight as a number of ``dtype``."""

    def encode(key: str, weight: Tensor) -> tuple[State, Tensor]:
        stored = weight.to(dtype)
        return {key: stored}, stored.float()

    return encode


def is_linear(key: str, weight: Tensor) -> bool:
    """Whether quantisers pack it: the matrices of attention and feed-forward."""
    return weight.ndim == 2 and key.endswith(".weight") and any(part in key for part in LINEAR)


def mixed(linear: torch.dtype, rest: torch.dtype = torch.bfloat16) -> Encode:
    """Kijai's unscaled files: matrices in ``linear``, modulations and norms in float32, else ``rest``."""

    def encode(key: str, weight: Tensor) -> tuple[State, Tensor]:
        if is_linear(key, weight):
            return plain(linear)(key, weight)
        wide = "modulation" in key or "norm" in key
        return plain(torch.float32 if wide else rest)(key, weight)

    return encode


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """Matrices divided by a scale: one for each (``shape`` ``()`` or ``(1,)``), or one a row ``(-1, 1)``."""

    dtype: torch.dtype
    leaf: str = "scale_weight"
    shape: tuple[int, ...] = ()
    scale_dtype: torch.dtype = torch.float32
    rest: torch.dtype = torch.bfloat16
    input_leaf: str | None = None
    note: Mapping[str, object] | None = None
    """Of a ``comfy_quant`` tensor beside each matrix."""

    def __call__(self, key: str, weight: Tensor) -> tuple[State, Tensor]:
        """Pack one weight."""
        if not is_linear(key, weight):
            return plain(self.rest)(key, weight)
        layer, numbers = key.removesuffix(".weight"), weight.to(torch.float32, copy=True)
        whole = self.dtype == torch.int8
        top = 127.0 if whole else torch.finfo(self.dtype).max
        ends = torch.aminmax(
            numbers, **({"dim": 1, "keepdim": True} if self.shape == (-1, 1) else {})
        )
        scale = (torch.maximum(-ends.min, ends.max) / top).to(self.scale_dtype)
        # In place: fresh memory for a gigabyte costs more than the arithmetic.
        numbers.div_(scale.float()).clamp_(-top, top)
        stored = (numbers.round_() if whole else numbers).to(self.dtype)
        state = {key: stored, f"{layer}.{self.leaf}": scale.reshape(self.shape)}
        if self.input_leaf:
            state[f"{layer}.{self.input_leaf}"] = torch.tensor(0.5).reshape(self.shape)
        if self.note:
            state[f"{layer}.comfy_quant"] = as_bytes(json.dumps(self.note).encode())
        return state, numbers.copy_(stored).mul_(scale.float())


def as_bytes(data: bytes) -> Tensor:
    """Bytes as a tensor, (n,) uint8."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def encoded(state: Mapping[str, Tensor], encode: Encode) -> tuple[State, State]:
    """What is stored for a whole network, and what it stands for."""
    stored, meaning = {}, {}
    for key, weight in state.items():
        parts, meaning[key] = encode(key, weight)
        stored |= parts
    return stored, meaning


# Files and folders.


def single(
    path: Path,
    state: Mapping[str, Tensor],
    encode: Encode,
    *,
    name: Rename = str,
    extra: Mapping[str, Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> Written:
    """One safetensors file, or one torch file where the name says so."""
    stored, meaning = encoded(state, encode)
    stored = {name(key): tensor for key, tensor in stored.items()} | dict(extra or {})
    if path.suffix == PICKLED:
        torch.save(stored, path)
    else:
        save_file(stored, path, metadata=metadata)
    return Written(path=path, meaning=meaning)


def prefixed(prefix: str) -> Rename:
    """Names behind a prefix."""
    return lambda name: prefix + name


def header_notes(path: Path, state: Mapping[str, Tensor], prefix: str) -> Written:
    """ComfyUI's fp8 with one note for all layers in the header instead of one tensor a layer."""
    layers = {
        prefix + key.removesuffix(".weight"): {"format": "float8_e4m3fn"}
        for key, weight in state.items()
        if is_linear(key, weight)
    }
    notes = json.dumps({"format_version": "1.0", "layers": layers})
    encode = Scaled(dtype=torch.float8_e4m3fn, leaf="weight_scale")
    return single(
        path, state, encode, name=prefixed(prefix), metadata={"_quantization_metadata": notes}
    )


def sharded(
    folder: Path,
    state: Mapping[str, Tensor],
    encode: Encode,
    *,
    size: int,
    stem: str = "diffusion_pytorch_model",
    name: Rename = str,
) -> Written:
    """Shards of at most ``size`` bytes and their index, by huggingface_hub."""
    folder.mkdir(parents=True)
    stored, meaning = encoded(state, encode)
    stored = {name(key): tensor for key, tensor in stored.items()}
    save_torch_state_dict(
        stored, folder, filename_pattern=stem + "{suffix}.safetensors", max_shard_size=size
    )
    return Written(path=folder, meaning=meaning)


def block_files(folder: Path, state: Mapping[str, Tensor], encode: Encode) -> Written:
    """LightX2V's quantiser: a file for each block, one for the rest, and an index."""
    folder.mkdir(parents=True)
    stored, meaning = encoded(state, encode)
    files: dict[str, State] = {}
    for key, tensor in stored.items():
        parts = key.split(".")
        file = f"block_{parts[1]}.safetensors" if parts[0] == "blocks" else "non_block.safetensors"
        files.setdefault(file, {})[key] = tensor
    for file, tensors in files.items():
        save_file(tensors, folder / file)
    index = {"metadata": {}, "weight_map": {k: file for file, t in files.items() for k in t}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return Written(path=folder, meaning=meaning)


# GGUF.

_SCALES = {"Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""First bytes of the float16 numbers that scale a block; random ones would hold NaN."""
_SPREAD = {"Q8_0": 74.0, "Q4_K": 250.0, "Q5_K": 500.0, "Q6_K": 1350.0}
"""Standard deviation of random blocks whose scale is one."""
_CENTRE = {"Q4_K": 7.5, "Q5_K": 15.5}
"""How many times the scale the second number must be for blocks to have no offset."""


def random_blocks(shape: tuple[int, ...], kind: Kind, seed: int) -> np.ndarray:
    """Blocks of random fields, (rows, bytes): gguf has no quantiser for most types."""
    weights, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rows, width = shape
    generator = torch.Generator().manual_seed(seed)
    count = rows * width // weights
    blocks = torch.randint(0, 256, (count, nbytes), generator=generator, dtype=torch.uint8)
    step = (0.5 + torch.rand(count, generator=generator)) / math.sqrt(width) / _SPREAD[kind.name]
    for at, factor in zip(_SCALES[kind.name], (1.0, _CENTRE.get(kind.name, 0.0)), strict=False):
        blocks[:, at : at + 2] = (factor * step).half().view(torch.uint8).view(count, 2)
    return blocks.view(rows, -1).numpy()


def gguf_kind(linear: Kind, rest: Kind = Kind.F16) -> Callable[[str, Tensor], Kind]:
    """Which type each weight gets from ComfyUI-GGUF's tools: matrices packed, small things float32."""

    def choose(key: str, weight: Tensor) -> Kind:
        if is_linear(key, weight):
            return linear
        small = weight.ndim == 1 or weight.numel() <= 1024 or "modulation" in key
        return Kind.F32 if small or weight.ndim > 4 else rest

    return choose


def gguf_file(
    path: Path,
    architecture: str,
    state: Mapping[str, Tensor],
    choose: Callable[[str, Tensor], Kind],
    *,
    name: Rename = str,
    spiece: bytes | None = None,
    fold: bool = False,
    draw: bool = False,
) -> Written:
    """A GGUF file by the package's own writer.

    Args:
        path: of the file.
        architecture: what the header calls the network.
        state: the weights.
        choose: the type of each.
        name: from the official name.
        spiece: a tokenizer for the header.
        fold: store what has more than four axes in two, with its shape in the header.
        draw: random blocks instead of quantised weights, as must be where gguf has no quantiser.
    """
    file = gguf.GGUFWriter(str(path), architecture)
    file.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if spiece:
        _add_tokenizer(file, spiece)
    meaning = {}
    for number, (key, weight) in enumerate(state.items()):
        shape, kind = tuple(weight.shape), choose(key, weight)
        if fold and weight.ndim > 4:
            file.add_array(f"comfy.gguf.orig_shape.{name(key)}", list(shape))
            weight = weight.reshape(-1, 256)
        drawn = kind.name.endswith("_K") or (draw and kind.name in _SCALES)
        stored = (
            random_blocks(shape, kind, number)
            if drawn
            else gguf.quants.quantize(weight.float().numpy(), kind)
        )
        file.add_tensor(name(key), stored, raw_dtype=kind)
        meaning[key] = torch.from_numpy(gguf.quants.dequantize(stored, kind)).float().view(shape)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return Written(path=path, meaning=meaning)


def _add_tokenizer(file: gguf.GGUFWriter, spiece: bytes) -> None:
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(spiece)
    file.add_tokenizer_model("t5")
    file.add_token_list([piece.piece.encode() for piece in model.pieces])
    file.add_token_scores([piece.score for piece in model.pieces])
    file.add_token_types([piece.type for piece in model.pieces])
    file.add_add_space_prefix(model.normalizer_spec.add_dummy_prefix)
    file.add_remove_extra_whitespaces(model.normalizer_spec.remove_extra_whitespaces)
    if model.normalizer_spec.precompiled_charsmap:
        file.add_precompiled_charsmap(model.normalizer_spec.precompiled_charsmap)
    file.add_unk_token_id(model.trainer_spec.unk_id)
    file.add_eos_token_id(model.trainer_spec.eos_id)
    file.add_pad_token_id(model.trainer_spec.pad_id)
