"""Attention behind one signature; a host passes its own backend.

Shape legend: B batch, L query tokens, S key tokens, N heads, D head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q (B, L, N, D), k (B, S, N, D), v (B, S, N, D)) -> (B, L, N * D)``, scale ``D ** -0.5``, no mask.

A backend may take a fourth argument, ``bias (S,)`` in ``q``'s dtype, which is added to the scores of
each key; it is given one only where the text was read for it (see :func:`log_counts`)."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention by PyTorch. Returns ``(B, L, N * D)`` in ``q``'s dtype."""
    q, k, v = (rearrange(t, "b l n d -> b n l d") for t in (q, k, v))
    mask = None if bias is None else bias.expand(1, 1, q.shape[2], -1)
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, mask)
    return rearrange(out, "b n l d -> b l (n d)")


PLAIN_SCORES = 2**26
"""Attention scores that :func:`plain` holds at a time, float32: 256 MB."""


def plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The formula written out in float32, some queries at a time: slow, and safe where a kernel fails.

    Returns ``(B, L, N * D)`` in ``q``'s dtype.
    """
    batch, _, heads, dim = q.shape
    keys, values = (rearrange(t, "b s n d -> b n s d").float() for t in (k, v))
    outs = []
    for part in torch.split(q, max(1, PLAIN_SCORES // (batch * heads * k.shape[1])), dim=1):
        queries = rearrange(part, "b l n d -> b n l d").float() * dim**-0.5
        scores = queries @ keys.transpose(2, 3)
        out = (scores if bias is None else scores + bias).softmax(-1) @ values
        outs.append(rearrange(out, "b n l d -> b l (n d)").to(q.dtype))
    return torch.cat(outs, dim=1)


def log_counts(count: int, dtype: torch.dtype) -> list[float]:
    """Biases of the few keys that weigh as much as ``count`` equal ones: their exponentials add up to it.

    One would do in exact arithmetic. The logarithm of a count is coarse in bfloat16 (1.6 % of the
    weight), so what rounding leaves over gets a key of its own, until less than 1e-6 is left.
    """
    biases: list[float] = []
    left = float(count)
    while left > 1e-6 * count:
        exact = torch.tensor(math.log(left), dtype=torch.float64)
        rounded = exact.to(dtype)
        if rounded.double() > exact:
            rounded = torch.nextafter(rounded, torch.tensor(-math.inf, dtype=dtype))
        biases.append(rounded.item())
        left -= math.exp(biases[-1])
    return biases
