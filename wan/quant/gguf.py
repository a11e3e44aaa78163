"""GGUF's packed blocks as torch arithmetic: bytes in, float32 out, on any device.

A block is a run of weights in one row with its own scales. Numbers are little-endian; ``d`` and ``m``
are float16. Layouts: https://github.com/ggml-org/ggml, ``src/ggml-common.h``. All arithmetic is in
float32 and in the order of the reference, so results equal ``gguf.quants.dequantize`` bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """One type of block."""

    block: int
    """Weights in a block."""
    nbytes: int
    """Bytes of a block."""
    unpack: Callable[[Tensor], Tensor]
    """Blocks (n, nbytes) uint8 -> weights (n, block) float32."""


def _half(blocks: Tensor, start: int) -> Tensor:
    """The float16 at byte ``start`` of every block, (n, 1) float32."""
    # A copy, because the bytes of a mapped file need not lie where float16 may be viewed.
    return blocks[:, start : start + 2].clone().view(torch.float16).float()


def _fields(packed: Tensor, bits: int, width: int) -> Tensor:
    """Unsigned fields of bytes (n, bytes) -> (n, bytes * 8 / bits) uint8.

    Every run of ``width`` bytes holds its lowest fields first, then its next, and so on.
    """
    runs, mask = packed.reshape(len(packed), -1, width), (1 << bits) - 1
    return torch.stack([(runs >> shift) & mask for shift in range(0, 8, bits)], dim=2).flatten(1)


def _offset(fields: Tensor, offset: int) -> Tensor:
    """Unsigned fields minus ``offset``, as float32."""
    return fields.float().sub_(offset)


def _nibbles(blocks: Tensor, start: int) -> Tensor:
    """The four-bit fields of the 16 bytes from ``start``, (n, 32)."""
    return _fields(blocks[:, start : start + 16], 4, 16)


def _fifth_bits(blocks: Tensor, start: int) -> Tensor:
    """One bit per weight in the 4 bytes from ``start``, where it tops a nibble, (n, 32)."""
    return _fields(blocks[:, start : start + 4], 1, 1) << 4


def _q4_0(blocks: Tensor) -> Tensor:
    """``d`` 2 bytes, nibbles 16: d (q - 8)."""
    return _offset(_nibbles(blocks, 2), 8).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor) -> Tensor:
    """``d`` 2, ``m`` 2, nibbles 16: d q + m."""
    return _nibbles(blocks, 4).float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: Tensor) -> Tensor:
    """``d`` 2, fifth bits 4, nibbles 16: d (q - 16)."""
    q = _nibbles(blocks, 6) | _fifth_bits(blocks, 2)
    return _offset(q, 16).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor) -> Tensor:
    """``d`` 2, ``m`` 2, fifth bits 4, nibbles 16: d q + m."""
    q = _nibbles(blocks, 8) | _fifth_bits(blocks, 4)
    return q.float().mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: Tensor) -> Tensor:
    """``d`` 2, int8 32: d q."""
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _scaled(q: Tensor, step: Tensor, low: Tensor | None = None) -> Tensor:
    """Numbers (n, block) float32 times their group's ``step`` less its ``low``, each (n, groups)."""
    groups = q.view(*step.shape, -1).mul_(step[..., None])
    if low is not None:
        groups.sub_(low[..., None])
    return groups.flatten(1)


def _q2_k(blocks: Tensor) -> Tensor:
    """Scales and minima 16 (a nibble each), two-bit fields 64, ``d`` 2, ``m`` 2: 16 groups."""
    scales, q = blocks[:, :16], _fields(blocks[:, 16:80], 2, 32)
    step = _half(blocks, 80) * (scales & 15).float()
    low = _half(blocks, 82) * (scales >> 4).float()
    return _scaled(q.float(), step, low)


def _q3_k(blocks: Tensor) -> Tensor:
    """Third bits 32 (unset: 4 less), two-bit fields 64, 6-bit scales 12, ``d`` 2: 16 groups."""
    s = _fields(blocks[:, 96:104], 4, 8) | (_fields(blocks[:, 104:108], 2, 4) << 4)
    q = _fields(blocks[:, 32:96], 2, 32) | (_fields(blocks[:, :32], 1, 32) << 2)
    return _scaled(_offset(q, 4), _half(blocks, 108) * _offset(s, 32))


def _scaled_by_eight(blocks: Tensor, q: Tensor) -> Tensor:
    """``d`` 2, ``m`` 2, then 6-bit scales s and minima t of eight groups in 12: d s q - m t."""
    scales, minima, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    # Groups 4 to 7 have their low nibbles in ``rest`` and their top bits above groups 0 to 3.
    s = torch.cat((scales & 63, (rest & 15) | ((scales >> 2) & 48)), dim=1)
    t = torch.cat((minima & 63, (rest >> 4) | ((minima >> 2) & 48)), dim=1)
    return _scaled(q.float(), _half(blocks, 0) * s.float(), _half(blocks, 2) * t.float())


def _q4_k(blocks: Tensor) -> Tensor:
    """Scales 16 as ``_scaled_by_eight`` has them, nibbles 128."""
    return _scaled_by_eight(blocks, _fields(blocks[:, 16:], 4, 32))


def _q5_k(blocks: Tensor) -> Tensor:
    """Scales 16 as ``_scaled_by_eight`` has them, fifth bits 32, nibbles 128."""
    top = _fields(blocks[:, 16:48], 1, 32) << 4
    return _scaled_by_eight(blocks, _fields(blocks[:, 48:], 4, 32) | top)


def _q6_k(blocks: Tensor) -> Tensor:
    """Nibbles 128, top bits 64, int8 scales s 16, ``d`` 2: 16 groups, d s (q - 32)."""
    q = _fields(blocks[:, :128], 4, 64) | (_fields(blocks[:, 128:192], 2, 32) << 4)
    step = _half(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return _scaled(_offset(q, 32), step)


def _iq4_values(fields: Tensor) -> Tensor:
    """Four-bit fields as indices into the 16 values of the IQ4 types, float32."""
    return torch.tensor(_IQ4_VALUES, dtype=torch.float32, device=fields.device)[fields.int()]


def _iq4_nl(blocks: Tensor) -> Tensor:
    """``d`` 2, nibbles 16: d value[q]."""
    return _iq4_values(_nibbles(blocks, 2)).mul_(_half(blocks, 0))


def _iq4_xs(blocks: Tensor) -> Tensor:
    """``d`` 2, 6-bit scales s in 2 (tops) and 4, nibbles 128: eight groups, d (s - 32) value[q]."""
    s = _fields(blocks[:, 4:8], 4, 1) | (_fields(blocks[:, 2:4], 2, 1) << 4)
    q = _fields(blocks[:, 8:], 4, 16)
    return _scaled(_iq4_values(q), _half(blocks, 0) * _offset(s, 32))


PACKINGS = {
    "Q8_0": Packing(block=32, nbytes=34, unpack=_q8_0),
    "Q4_0": Packing(block=32, nbytes=18, unpack=_q4_0),
    "Q4_1": Packing(block=32, nbytes=20, unpack=_q4_1),
    "Q5_0": Packing(block=32, nbytes=22, unpack=_q5_0),
    "Q5_1": Packing(block=32, nbytes=24, unpack=_q5_1),
    "Q2_K": Packing(block=256, nbytes=84, unpack=_q2_k),
    "Q3_K": Packing(block=256, nbytes=110, unpack=_q3_k),
    "Q4_K": Packing(block=256, nbytes=144, unpack=_q4_k),
    "Q5_K": Packing(block=256, nbytes=176, unpack=_q5_k),
    "Q6_K": Packing(block=256, nbytes=210, unpack=_q6_k),
    "IQ4_NL": Packing(block=32, nbytes=18, unpack=_iq4_nl),
    "IQ4_XS": Packing(block=256, nbytes=136, unpack=_iq4_xs),
}
"""Block types by GGUF name."""
