"""Initial noise by a seed: as ComfyUI draws it, and as the official code draws it on a GPU. Pure.

``comfy`` is torch's CPU generator, the same on every machine. ``official`` follows what
``torch.randn`` computes with a CUDA generator: Philox4x32-10 (Salmon et al., SC 2011; cuRAND),
Box-Muller in float32, and the order in which PyTorch's kernel hands the numbers to elements
(``aten/src/ATen/native/cuda/DistributionTemplates.h``). Up to ``256 * multiprocessors * (threads //
256)`` elements every GPU gives the same; above, the order hangs on how many threads the GPU runs.

Not bit for bit: the GPU takes sine and cosine from its fast unit (about 2**-21 off), this file from
the CPU. It was compared with what GPUs printed of small draws; the order of big ones is from the
source and has not been compared with a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

LAYOUTS = ("comfy", "official")
"""Ways to draw noise, see :func:`draw_noise`."""

H100_MULTIPROCESSORS = 132
"""Of an H100 SXM or H200. Others: A100 108, H100 PCIe 114, RTX 4090 128, RTX 5090 170, H20 78."""

DATACENTER_THREADS = 2048
"""Threads of a multiprocessor on an A100, H100 or H200; 1536 on RTX 30, 40 and 50 cards."""

MAX_SEED = 2**64 - 1
_BLOCK = 256
_PER_CALL = 4
_WORD = 2**32 - 1
_ROUNDS = 10
_TWO_PI = torch.tensor(2 * math.pi, dtype=torch.float32).item()


def draw_noise(
    shape: Sequence[int],
    seed: int,
    layout: str = "comfy",
    *,
    multiprocessors: int = H100_MULTIPROCESSORS,
    threads: int = DATACENTER_THREADS,
) -> Tensor:
    """Standard normal noise of ``shape``, float32 on the CPU.

    Args:
        shape: such as (B, C, T, h, w). The official code draws one clip without a batch; a batch of
            one has the same numbers in the same order.
        seed: 0 to 2**64 - 1. Torch's CPU generator looks at its lowest 32 bits only.
        layout: ``comfy`` or ``official``.
        multiprocessors: of the GPU to follow; ``official`` only.
        threads: that one multiprocessor of it can hold, at least 256; ``official`` only.

    Raises:
        ValueError: an unknown layout, a seed out of range, or a GPU that cannot be.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed={seed} is not within 0 to 2**64 - 1; use one that is")
    if layout == "comfy":
        generator = torch.Generator("cpu").manual_seed(seed)
        return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)
    if layout != "official":
        raise ValueError(f"unknown noise {layout!r}; use one of {', '.join(LAYOUTS)}")
    if multiprocessors < 1 or threads < _BLOCK:
        raise ValueError(
            f"a GPU of {multiprocessors} multiprocessors with {threads} threads each runs no block "
            f"of {_BLOCK}; use {H100_MULTIPROCESSORS} and {DATACENTER_THREADS} for an H100"
        )
    count = math.prod(shape)
    blocks = min(-(-count // _BLOCK), multiprocessors * (threads // _BLOCK))
    return _cuda_normal(count, seed, blocks * _BLOCK).reshape(tuple(shape))


def _cuda_normal(count: int, seed: int, launched: int) -> Tensor:
    """``count`` numbers of a kernel of ``launched`` threads.

    Each thread has its own stream. In every round it draws four numbers, and the elements get the
    first numbers of all threads, then the second ones, and so on.
    """
    if count == 0:
        return torch.empty(0)
    thread = torch.arange(launched)
    zero = torch.zeros_like(thread)
    rounds = []
    for number in range(-(-count // (_PER_CALL * launched))):
        bits = philox((zero + number, zero, thread, zero), (seed & _WORD, seed >> 32))
        rounds += [*_box_muller(bits[0], bits[1]), *_box_muller(bits[2], bits[3])]
    return torch.cat(rounds)[:count]


Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox4x32-10: four random words for each counter.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2**32), lowest word first.
        key: two words, lowest first.
    """
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(a, 0xD2511F53)
        high1, low1 = _multiply(c, 0xCD9E8D57)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return a, b, c, d


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low word of a product of two words, in halves: int64 does not hold it whole."""
    low = (word & 0xFFFF) * factor
    middle = (word >> 16) * factor + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def _box_muller(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normal numbers from two random words, in the float32 arithmetic of cuRAND."""
    radius = x.float() * 2.0**-32 + 2.0**-33
    turn = torch.tensor(2.0**-32 * _TWO_PI, dtype=torch.float32).double()
    # float64 holds the product whole, so this rounds once, like the GPU's multiply-add.
    angle = (y.float().double() * turn + turn / 2).float().double()
    length = torch.sqrt(-2 * torch.log(radius))
    return length * torch.sin(angle).float(), length * torch.cos(angle).float()
