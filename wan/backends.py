"""Attention kernels by name; one that others wrote is held against the formula before it is used.

flash-attn and SageAttention are used where they are installed, never installed or chosen by themselves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .attention import Attention, plain, sdpa

CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
LIMIT = 0.02
"""Relative error at which a kernel is refused. FlashAttention's in bfloat16 is its rounding, about 0.003."""
SAGE_LIMIT = 0.06
"""The same for a kernel that rounds queries and keys to eight bits."""


def _cudnn() -> Attention:
    def attention(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        with sdpa_kernel(CUDNN_FIRST, set_priority=True):
            return sdpa(q, k, v, *bias)

    return attention


def _flash() -> Attention:
    return _unbiased(importlib.import_module("flash_attn").flash_attn_func)


def _sage() -> Attention:
    kernel = importlib.import_module("sageattention").sageattn
    return _unbiased(lambda q, k, v: kernel(q, k, v, tensor_layout="NHD"))


def _unbiased(kernel: Callable[[Tensor, Tensor, Tensor], Any]) -> Attention:
    """A kernel over ``(B, L, N, D)`` behind the one signature; what has a bias goes to PyTorch's."""

    def attention(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        if bias:
            return sdpa(q, k, v, *bias)
        out: Tensor = kernel(q, k, v).flatten(2)
        return out

    return attention


_MADE: dict[str, tuple[Callable[[], Attention], float]] = {
    "cudnn": (_cudnn, LIMIT),
    "flash": (_flash, LIMIT),
    "sage": (_sage, SAGE_LIMIT),
}
BACKENDS = ("sdpa", *_MADE)
"""Names of kernels; the first is PyTorch's own choice."""


@cache
def open_backend(name: str, device: torch.device, dtype: torch.dtype) -> Attention:
    """The kernel called ``name``, after a look at what it computes on ``device`` in ``dtype``.

    Raises:
        ValueError: there is no such kernel here, or it computes something else.
    """
    if name not in BACKENDS:
        raise ValueError(f"attention={name!r} is unknown; use one of {', '.join(BACKENDS)}")
    if name == BACKENDS[0]:
        return sdpa
    make, limit = _MADE[name]
    try:
        attention = make()
        error = backend_error(attention, device, dtype)
    except ImportError as missing:
        raise ValueError(
            f"attention={name!r} needs a package that is not installed ({missing}); "
            f"install it or use {BACKENDS[0]}"
        ) from missing
    except (RuntimeError, AssertionError, TypeError, ValueError) as failed:
        words = str(failed).partition("\n")[0]
        raise ValueError(
            f"attention={name!r} does not run on {device.type} in {dtype} ({words}); use {BACKENDS[0]}"
        ) from failed
    if not error <= limit:
        raise ValueError(
            f"attention={name!r} is {error:.1%} off here, more than {limit:.0%}; use {BACKENDS[0]}"
        )
    return attention


def backend_error(attention: Attention, device: torch.device, dtype: torch.dtype) -> float:
    """The larger relative error of ``attention`` over random tokens and over a short text.

    Keys have a few channels far from zero, as those of real networks do.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> Tensor:
        return torch.randn(1, length, 2, 128, generator=generator)

    errors = []
    for keys in (320, 77):
        k = draw(keys)
        k[..., :4] += 3
        given = [t.to(device, dtype) for t in (draw(320), k, draw(keys))]
        wanted, got = plain(*given).float(), attention(*given).float()
        errors.append(float((got - wanted).norm() / wanted.norm()))
    return max(errors, key=lambda error: (error != error, error))  # not a number is the largest
