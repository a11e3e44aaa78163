"""GGUF blocks against the ``gguf`` package's own decoder, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from wanexperts.wan.quant import FORMATS, Quant, dequantise, packed_shape
from wanexperts.wan.quant.gguf import PACKINGS

gguf = pytest.importorskip("gguf", reason="the gguf package is the oracle: pip install gguf")

# Where each block keeps its float16 numbers; random bytes there would be infinite now and then.
HALVES = {
    "Q8_0": (0,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
QUANTISED_BY_THE_ORACLE = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")


def usual(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.standard_normal(count).astype(np.float16)


def extreme(rng: np.random.Generator, count: int) -> np.ndarray:
    """Zeros of both signs, the largest, the smallest normal and the smallest number of float16."""
    ends = np.array([0.0, -0.0, 65504, -65504, 2**-14, -(2**-14), 2**-24, -(2**-24)])
    return rng.choice(ends, count).astype(np.float16)


def random_blocks(name: str, shape: tuple[int, ...], halves: Callable) -> np.ndarray:
    """Packed rows of a weight of ``shape``: every byte random, the float16 numbers from ``halves``."""
    packing = PACKINGS[name]
    rng = np.random.default_rng(sum(shape) + len(name))
    rows = rng.integers(
        0, 256, (*shape[:-1], shape[-1] // packing.block * packing.nbytes), dtype=np.uint8
    )
    blocks = rows.reshape(-1, packing.nbytes)
    for at in HALVES[name]:
        blocks[:, at : at + 2] = halves(rng, len(blocks)).view(np.uint8).reshape(-1, 2)
    return rows


def decoded(name: str, rows: np.ndarray) -> np.ndarray:
    """What the oracle reads, with the float's own bits so that -0.0 differs from 0.0."""
    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[name])


def bits(numbers: np.ndarray | torch.Tensor) -> np.ndarray:
    return np.asarray(numbers).view(np.int32)


def test_the_table_is_ggufs() -> None:
    sizes = {name: gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] for name in PACKINGS}
    assert {n: (p.block, p.nbytes) for n, p in PACKINGS.items()} == sizes
    assert set(HALVES) == set(PACKINGS) == {n for n, f in FORMATS.items() if f.packing}


# The last shape is more than a slab of weights on a CPU, and no whole number of slabs.
@pytest.mark.parametrize("shape", [(1, 256), (3, 512), (2, 5, 256), (2100, 512)], ids=str)
@pytest.mark.parametrize("halves", [usual, extreme])
@pytest.mark.parametrize("name", PACKINGS)
def test_random_blocks(name: str, halves: Callable, shape: tuple[int, ...]) -> None:
    rows = random_blocks(name, shape, halves)
    quant = Quant(format=name, shape=shape)
    got = dequantise(torch.from_numpy(rows), None, quant, torch.float32)
    assert got.shape == shape
    assert np.array_equal(bits(got), bits(decoded(name, rows)))


@pytest.mark.parametrize("name", QUANTISED_BY_THE_ORACLE)
def test_weights_quantised_by_the_oracle(name: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 96)
    weight[0] = 0
    rows = gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType[name])
    quant = Quant(format=name, shape=(7, 96))
    assert packed_shape(quant) == (rows.shape, torch.uint8)
    got = dequantise(torch.from_numpy(rows), None, quant, torch.float32)
    assert np.array_equal(bits(got), bits(decoded(name, rows)))
    # A check of the route, not of the decoder: half a step of the coarsest, 1/16 of +-4.2, is 0.27.
    assert (got - weight).abs().max() < 0.3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_narrow_results_are_rounded_once(dtype: torch.dtype) -> None:
    rows = random_blocks("Q5_K", (4, 512), usual)
    quant = Quant(format="Q5_K", shape=(4, 512))
    got = dequantise(torch.from_numpy(rows), None, quant, dtype)
    assert torch.equal(got, torch.from_numpy(decoded("Q5_K", rows)).to(dtype))


@pytest.mark.parametrize("name", PACKINGS)
def test_mapped_bytes_may_start_anywhere(name: str) -> None:
    rows = random_blocks(name, (2, 256), usual)
    file = bytearray(b"?" + rows.tobytes() + b"?")
    mapped = torch.frombuffer(file, dtype=torch.uint8, offset=1, count=rows.size)
    whole = torch.frombuffer(file, dtype=torch.uint8)[1:-1]
    quant = Quant(format=name, shape=(2, 256))
    for stored in (mapped, whole, whole.view(2, -1)):
        got = dequantise(stored, None, quant, torch.float32)
        assert np.array_equal(bits(got), bits(decoded(name, rows)))


def test_the_bytes_stay_as_they_are() -> None:
    for name in PACKINGS:
        rows = torch.from_numpy(random_blocks(name, (2, 256), usual))
        kept = rows.clone()
        dequantise(rows, None, Quant(format=name, shape=(2, 256)), torch.float32)
        assert torch.equal(rows, kept)
