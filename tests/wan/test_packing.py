"""How packed weights are found in a file, and every packing that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from wanexperts.wan.checkpoint import check_complete, load_transformer, open_checkpoint
from wanexperts.wan.config import TransformerConfig

pytest.importorskip("gguf")

pytest.importorskip("diffusers")

import gguf
import numpy as np
from wanexperts.tests.parity import networks
from wanexperts.tests.parity.layouts import (
    Kind,
    Scaled,
    State,
    as_bytes,
    encoded,
    gguf_file,
    gguf_kind,
    header_notes,
    is_linear,
    plain,
    random_weights,
    single,
)

EXPERT = TransformerConfig(dim=256, ffn_dim=256, num_heads=2, num_layers=1, text_dim=32)
STATE = random_weights(networks.expert_shapes(EXPERT), 1)
LINEAR = {key.removesuffix(".weight") for key, weight in STATE.items() if is_linear(key, weight)}
LAYER = "blocks.0.ffn.0"
E4M3, BF16 = torch.float8_e4m3fn, torch.bfloat16
SCALED = Scaled(dtype=E4M3)


def write(path: Path, state: State, **metadata: str) -> Path:
    save_file(state, path, metadata=metadata or None)
    return path


def scaled(**changes: torch.Tensor | None) -> State:
    """An expert in scaled fp8 with some tensors changed (``__`` stands for a dot), None removes."""
    state = encoded(STATE, SCALED)[0]
    for name, tensor in changes.items():
        key = f"{LAYER}.{name}" if "__" not in name else name.replace("__", ".")
        state.pop(key, None)
        if tensor is not None:
            state[key] = tensor
    return state


def note(value: object) -> torch.Tensor:
    return as_bytes(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("shape", "scale_shape"), [((), ()), ((1,), (1,)), ((-1, 1), (256, 1))], ids=str
)
def test_scales_belong_to_layers(tmp_path, shape, scale_shape):
    encode = Scaled(dtype=E4M3, shape=shape, input_leaf="scale_input")
    found = open_checkpoint(single(tmp_path / "a", STATE, encode).path)
    assert found.quants.keys() == LINEAR
    assert {quant.format for quant in found.quants.values()} == {"float8_e4m3fn"}
    assert found.quants[LAYER].shape == (256, 256)
    assert {quant.scale_shape for quant in found.quants.values()} == {scale_shape}
    leaves = {f"{layer}.{leaf}" for layer in LINEAR for leaf in ("weight_scale", "input_scale")}
    assert found.scales.keys() == leaves
    assert found.tensors.keys() == STATE.keys()
    assert found.state_dict().keys() == STATE.keys() | leaves
    scales = found.read_scales()
    assert scales.keys() == leaves
    assert scales[f"{LAYER}.weight_scale"].shape == scale_shape


FULL = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}


@pytest.mark.parametrize(
    ("marker", "told", "expected"),
    [(0, None, False), (2, None, True), (None, None, False), (None, FULL, True),
     (None, {"format": "float8_e4m3fn"}, False),
     (None, {**FULL, "full_precision_matrix_mult": "yes"}, False)],
)  # fmt: skip
def test_full_precision_products_are_asked_for(tmp_path, marker, told, expected):
    extra = {} if marker is None else {"scaled_fp8": torch.zeros(marker, dtype=E4M3)}
    encode = Scaled(dtype=E4M3, leaf="weight_scale", note=told)
    found = open_checkpoint(single(tmp_path / "a", STATE, encode, extra=extra).path)
    assert found.quants.keys() == LINEAR
    assert {quant.full_precision for quant in found.quants.values()} == {expected}


def test_one_layer_may_differ_from_the_others(tmp_path):
    state = scaled(comfy_quant=note(FULL))
    found = open_checkpoint(write(tmp_path / "a", state))
    assert {layer for layer, quant in found.quants.items() if quant.full_precision} == {LAYER}


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
def test_notes_in_the_header_are_found_behind_a_prefix(tmp_path, prefix):
    path = header_notes(tmp_path / "a", STATE, prefix).path
    assert open_checkpoint(path).quants.keys() == LINEAR


def test_plain_fp8_is_a_number_format(tmp_path):
    extra = {"scaled_fp8": torch.zeros(0, dtype=E4M3)}
    found = open_checkpoint(single(tmp_path / "a", STATE, plain(E4M3), extra=extra).path)
    assert not found.quants
    check_complete(found)


def test_gguf_packs_what_its_header_says(tmp_path):
    found = open_checkpoint(gguf_file(tmp_path / "a.gguf", "wan", STATE, gguf_kind(Kind.Q5_K)).path)
    assert found.quants.keys() == LINEAR
    assert {(q.format, q.scale_shape) for q in found.quants.values()} == {("Q5_K", None)}


@pytest.mark.parametrize(
    ("leaf", "packing"),
    [("weight_scale_2", "NVFP4"), ("qweight", "GPTQ or AWQ"), ("qzeros", "GPTQ or AWQ"),
     ("absmax", "bitsandbytes"), ("quant_map", "bitsandbytes"), ("wscales", "SVDQuant"),
     ("smooth_factor", "SVDQuant"), ("weight_zero", "an integer packing with zero points")],
)  # fmt: skip
def test_other_packings_are_named(tmp_path, leaf, packing):
    path = write(tmp_path / "a", scaled(**{leaf: torch.zeros(2)}))
    with pytest.raises(ValueError, match=f"is quantised as {packing}, which is not read; use the"):
        open_checkpoint(path)


@pytest.mark.parametrize("told", ["nvfp4", "mxfp8", "int4", None, 8])
def test_other_formats_of_a_note_are_named(tmp_path, told):
    path = write(tmp_path / "a", scaled(comfy_quant=note({"format": told})))
    with pytest.raises(ValueError, match=rf"{LAYER} is quantised as '{told}', which is not read"):
        open_checkpoint(path)
    layers = json.dumps({"layers": {LAYER: {"format": told}}})
    path = write(tmp_path / "b", scaled(), _quantization_metadata=layers)
    with pytest.raises(ValueError, match=rf"{LAYER} is quantised as '{told}', which is not read"):
        open_checkpoint(path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_note(tmp_path, data):
    path = write(tmp_path / "a", scaled(comfy_quant=as_bytes(data) if data else torch.zeros(0)))
    with pytest.raises(ValueError, match=rf"{LAYER}\.comfy_quant is damaged; download it again"):
        open_checkpoint(path)


def test_a_note_that_is_no_table(tmp_path):
    path = write(tmp_path / "a", scaled(comfy_quant=note([1])))
    with pytest.raises(ValueError, match="is quantised as 'None', which is not read"):
        open_checkpoint(path)


def test_a_note_of_floats(tmp_path):
    path = write(tmp_path / "a", scaled(comfy_quant=torch.tensor([0.5, float("nan")])))
    with pytest.raises(ValueError, match="comfy_quant is damaged"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "7", '{"layers": 1}', '{"layers": []}', "[" * 100_000, "{" * 9]
)
def test_a_damaged_header_entry(tmp_path, text):
    path = write(tmp_path / "a", scaled(), _quantization_metadata=text)
    with pytest.raises(ValueError, match="_quantization_metadata is damaged; download it again"):
        open_checkpoint(path)


def test_an_int8_weight_needs_a_scale(tmp_path):
    weight = torch.zeros(256, 256, dtype=torch.int8)
    path = write(tmp_path / "a", scaled(weight=weight, scale_weight=None))
    with pytest.raises(ValueError, match=rf"{LAYER}\.weight is int8 without a scale; use the bf16"):
        open_checkpoint(path)


@pytest.mark.parametrize("shape", [(2,), (1, 256), (255,), (256, 2), (128, 1), (256, 1, 1)])
def test_a_scale_of_another_shape(tmp_path, shape):
    path = write(tmp_path / "a", scaled(scale_weight=torch.ones(shape)))
    with pytest.raises(ValueError, match="one number, or one for each of its 256 rows is read"):
        open_checkpoint(path)


@pytest.mark.parametrize("dtype", [torch.int32, E4M3, torch.uint8])
def test_a_scale_that_is_no_float(tmp_path, dtype):
    path = write(tmp_path / "a", scaled(scale_weight=torch.ones(()).to(dtype)))
    with pytest.raises(
        ValueError, match=r"the scale of blocks\.0\.ffn\.0\.weight is .*, not a float"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "changes",
    [{"weight": torch.zeros(256, 256, dtype=BF16)}, {"weight": None}, {"nothing__weight_scale": torch.ones(())},
     {"nothing__input_scale": torch.ones(())}],
)  # fmt: skip
def test_a_scale_without_a_packed_weight(tmp_path, changes):
    path = write(tmp_path / "a", scaled(**changes))
    with pytest.raises(ValueError, match="but no quantised weight for it; download it again"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "but"),
    [({"weight": STATE[f"{LAYER}.weight"].bfloat16(), "scale_weight": None}, "BF16"),
     ({"weight": torch.ones(256, 256).to(torch.float8_e5m2)}, "F8_E5M2"),
     ({"weight": torch.ones(256, 256, dtype=torch.int8)}, "I8"),
     ({"scale_weight": None}, "without a scale")],
)  # fmt: skip
@pytest.mark.parametrize("place", ["tensor", "header"])
def test_a_note_that_does_not_fit(tmp_path, changes, but, place):
    told = {"format": "float8_e4m3fn"}
    header = {"_quantization_metadata": json.dumps({"layers": {LAYER: told}})}
    own = {"comfy_quant": note(told)} if place == "tensor" else {}
    path = write(tmp_path / "a", scaled(**changes, **own), **({} if own else header))
    with pytest.raises(
        ValueError, match=rf"{LAYER} is quantised as float8_e4m3fn, but it is {but}; "
    ):
        open_checkpoint(path)


def test_two_scales_of_one_layer(tmp_path):
    path = write(tmp_path / "a", scaled(weight_scale=torch.ones(())))
    with pytest.raises(
        ValueError, match=rf"has two scales for {LAYER} \(.*\), of which one can be"
    ):
        open_checkpoint(path)


def test_a_scale_that_one_block_lost(tmp_path):
    deep = TransformerConfig(dim=256, ffn_dim=256, num_heads=2, num_layers=2, text_dim=32)
    state = encoded(random_weights(networks.expert_shapes(deep), 1), SCALED)[0]
    open_checkpoint(write(tmp_path / "whole", state))
    del state["blocks.1.ffn.0.scale_weight"]
    path = write(tmp_path / "a", state)
    with pytest.raises(
        ValueError, match=r"blocks\.1\.ffn\.0\.weight has no scale, but the same layer"
    ):
        open_checkpoint(path)
    state["blocks.1.ffn.0.weight"] = torch.ones(256, 256, dtype=BF16)
    check_complete(open_checkpoint(write(tmp_path / "kept", state)))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("suffix", ["", ".pth"])
def test_a_scale_that_scales_nothing(tmp_path, value, suffix):
    state = scaled(scale_weight=torch.tensor(value))
    path = tmp_path / f"a{suffix}"
    torch.save(state, path) if suffix else write(path, state)
    refused(path, f"the scale {LAYER}.weight_scale is zero or not finite; download it again")


def test_a_row_of_zeros_may_have_a_scale_of_zero(tmp_path):
    scale = torch.ones(256, 1)
    scale[3] = 0
    check_complete(open_checkpoint(write(tmp_path / "a", scaled(scale_weight=scale))))
    scale[4] = torch.nan
    refused(write(tmp_path / "b", scaled(scale_weight=scale)), "is zero or not finite")


# What only the network tells: found when keys are checked, before a weight is read.

UNREAD = "not readable (first: {}); use the bf16, fp16, scaled fp8, int8 or GGUF file"


def refused(path: Path, sentence: str) -> None:
    with pytest.raises(ValueError) as told:  # noqa: PT011
        check_complete(open_checkpoint(path, "transformer"))
    assert sentence in str(told.value)
    with pytest.raises(ValueError):  # noqa: PT011
        load_transformer(path)


@pytest.mark.parametrize("key", ["head.modulation", "blocks.0.norm3.bias", f"{LAYER}.weight"])
@pytest.mark.parametrize(
    "dtype",
    [torch.int32, torch.int64, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fnuz],
    ids=str,
)
def test_weights_that_are_no_floats(tmp_path, key, dtype):
    state = STATE | {key: torch.zeros(STATE[key].shape, dtype=dtype)}
    refused(write(tmp_path / "a", state), UNREAD.format(f"{key} as")[:30])


def blocks(path: Path, key: str, kind: Kind) -> Path:
    """A GGUF file with one weight in some packing."""
    file = gguf.GGUFWriter(str(path), "wan")
    for name, weight in STATE.items():
        if name == key:
            size, nbytes = gguf.GGML_QUANT_SIZES[kind]
            shape = (*weight.shape[:-1], weight.shape[-1] // size * nbytes)
            file.add_tensor(name, np.zeros(shape, np.uint8), raw_dtype=kind)
        else:
            file.add_tensor(name, weight.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.mark.parametrize("kind", ["IQ2_XXS", "IQ1_S", "TQ1_0", "Q8_K"])
def test_gguf_types_that_are_not_read(tmp_path, kind):
    path = blocks(tmp_path / "a.gguf", f"{LAYER}.weight", Kind[kind])
    refused(path, f"1 {UNREAD.format(f'{LAYER}.weight as {kind}')}")


@pytest.mark.parametrize(
    "key", ["head.modulation", "blocks.0.norm3.weight", "blocks.0.norm3.bias", f"{LAYER}.bias"]
)
def test_gguf_packs_only_matrices(tmp_path, key):
    refused(blocks(tmp_path / "a.gguf", key, Kind.Q8_0), f"1 {UNREAD.format(f'{key} as Q8_0')}")


def test_a_packed_row_must_be_whole_blocks(tmp_path):
    narrow = TransformerConfig(dim=128, ffn_dim=256, num_heads=1, num_layers=1, text_dim=32)
    state = random_weights(networks.expert_shapes(narrow), 1)
    path, key = tmp_path / "a.gguf", "blocks.0.self_attn.q.weight"
    file = gguf.GGUFWriter(str(path), "wan")
    for name, weight in state.items():
        if name == key:  # two rows in one block
            file.add_array(f"comfy.gguf.orig_shape.{name}", list(weight.shape))
            file.add_tensor(name, np.zeros((64, 144), np.uint8), raw_dtype=Kind.Q4_K)
        else:
            file.add_tensor(name, weight.numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    with pytest.raises(ValueError, match=r"Q4_K packs 256 weights of a row at a time"):
        load_transformer(path)
