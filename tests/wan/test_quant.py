"""Formats, and fp8 and int8 against their definitions written out in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from wanexperts.wan.quant import FORMATS, Quant, dequantise, packed_shape, quant_format

CODES = np.arange(256, dtype=np.uint8)


def small_float(code: int, exponent_bits: int, *, finite: bool) -> float:
    """One fp8 number by the definition (Micikevicius et al. 2022, arXiv:2209.05433, table 1)."""
    mantissa_bits = 7 - exponent_bits
    sign = -1.0 if code & 0x80 else 1.0
    exponent = (code & 0x7F) >> mantissa_bits
    mantissa = code & ((1 << mantissa_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    top = (1 << exponent_bits) - 1
    if exponent == top and not finite:
        return math.nan if mantissa else sign * math.inf
    if exponent == top and mantissa == (1 << mantissa_bits) - 1:
        return math.nan
    if exponent == 0:
        return sign * math.ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * math.ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits)


TABLES = {
    "float8_e4m3fn": np.array([small_float(c, 4, finite=True) for c in range(256)], np.float32),
    "float8_e5m2": np.array([small_float(c, 5, finite=False) for c in range(256)], np.float32),
    "int8": CODES.view(np.int8).astype(np.float32),
}
SCALES = {
    "tensor": (),
    "tensor as a row": (1,),
    "tensor as a matrix": (1, 1),
    "channel": (6,),
    "channel as a column": (6, 1),
}


def stored(name: str) -> tuple[torch.Tensor, np.ndarray]:
    """A weight (6, 256) with every code in every row, and its numbers."""
    rows = np.stack([np.roll(CODES, 11 * row) for row in range(6)])
    return torch.from_numpy(rows).view(FORMATS[name].dtype), TABLES[name][rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("name", TABLES)
def test_scaled_formats(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, numbers = stored(name)
    scale = np.random.default_rng(1).uniform(1e-3, 2, shape).astype(np.float32)
    wanted = numbers * scale.reshape(-1, 1)
    quant = Quant(format=name, shape=(6, 256), scale_shape=shape)
    got = dequantise(weight, torch.tensor(scale), quant, dtype)
    assert got.dtype == dtype
    assert torch.equal(got.nan_to_num(7), torch.from_numpy(wanted).to(dtype).nan_to_num(7))
    assert packed_shape(quant) == ((6, 256), weight.dtype)


def test_a_weight_of_several_slabs_meets_the_scales_of_its_rows() -> None:
    torch.manual_seed(0)
    weight = torch.randint(-127, 128, (1500, 1024), dtype=torch.int8)
    scale = torch.rand(1500, 1)
    quant = Quant(format="int8", shape=(1500, 1024), scale_shape=(1500, 1))
    wanted = weight.numpy().astype(np.float32) * scale.numpy()
    assert np.array_equal(dequantise(weight, scale, quant, torch.float32).numpy(), wanted)


def test_a_scale_may_be_stored_narrow() -> None:
    weight, numbers = stored("int8")
    scale = torch.tensor(0.3, dtype=torch.bfloat16)
    quant = Quant(format="int8", shape=(6, 256), scale_shape=())
    wanted = numbers * np.float32(0.30078125)
    assert np.array_equal(dequantise(weight, scale, quant, torch.float32).numpy(), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_without_a_scale(name: str, dtype: torch.dtype) -> None:
    weight, numbers = stored(name)
    got = dequantise(weight, None, Quant(format=name, shape=(6, 256)), dtype)
    assert got.dtype == dtype
    assert np.array_equal(got.float().numpy(), numbers, equal_nan=True)


def test_stored_dtypes_have_their_formats() -> None:
    names = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8", "Q6_K": "Q6_K"}
    assert {dtype: quant_format(dtype) for dtype in names} == names
    assert set(names.values()) <= set(FORMATS)
    for dtype in ("F32", "F16", "BF16", "F64", "U8", "I64", "IQ2_XS", "float8_e4m3fn"):
        assert quant_format(dtype) is None


@pytest.mark.parametrize(
    ("quant", "words"),
    [
        (Quant(format="nvfp4", shape=(4, 32)), "nvfp4 is not a packing that is read; use float8"),
        (Quant(format="Q4_K", shape=(4, 128)), "Q4_K packs 256 weights of a row at a time"),
        (Quant(format="Q8_0", shape=(4, 32), scale_shape=()), "Q8_0 has its scales inside"),
        (Quant(format="int8", shape=(4, 32)), "int8 without a scale says nothing"),
        (Quant(format="int8", shape=(4, 32), scale_shape=(32,)), r"a scale of shape \(32,\)"),
        (Quant(format="int8", shape=(4, 32), scale_shape=(1, 32)), "for each of the 4 rows"),
        (Quant(format="float8_e5m2", shape=(256, 256), scale_shape=(2, 2)), r"shape \(2, 2\)"),
    ],
)
def test_what_is_not_read_is_refused(quant: Quant, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        packed_shape(quant)


def test_tensors_that_are_not_as_told_are_refused() -> None:
    quant = Quant(format="int8", shape=(4, 32), scale_shape=(4, 1))
    weight, scale = torch.zeros(4, 32, dtype=torch.int8), torch.ones(4, 1)
    dequantise(weight, scale, quant, torch.float32)
    for wrong in (weight.float(), weight.view(torch.uint8), weight[:3]):
        with pytest.raises(ValueError, match="holds no int8 weight"):
            dequantise(wrong, scale, quant, torch.float32)
    for other in (None, torch.ones(4), torch.ones(())):
        with pytest.raises(ValueError, match=r"use one of shape \(4, 1\)"):
            dequantise(weight, other, quant, torch.float32)
