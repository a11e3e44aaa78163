"""Attention behind one signature; a host passes its own backend.

Shape legend: B batch, L query tokens, S key tokens, N heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(q (B, L, N, D), k (B, S, N, D), v (B, S, N, D)) -> (B, L, N * D)``, scale ``D ** -0.5``, no mask."""


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention by PyTorch. Returns ``(B, L, N * D)`` in ``q``'s dtype."""
    q, k, v = (rearrange(t, "b l n d -> b n l d") for t in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return rearrange(out, "b n l d -> b l (n d)")


PLAIN_SCORES = 2**26
"""Attention scores that :func:`plain` holds at a time, float32: 256 MB."""


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The formula written out in float32, some queries at a time: slow, and safe where a kernel fails.

    Returns ``(B, L, N * D)`` in ``q``'s dtype.
    """
    batch, _, heads, dim = q.shape
    keys, values = (rearrange(t, "b s n d -> b n s d").float() for t in (k, v))
    outs = []
    for part in torch.split(q, max(1, PLAIN_SCORES // (batch * heads * k.shape[1])), dim=1):
        queries = rearrange(part, "b l n d -> b n l d").float() * dim**-0.5
        out = (queries @ keys.transpose(2, 3)).softmax(-1) @ values
        outs.append(rearrange(out, "b n l d -> b l (n d)").to(q.dtype))
    return torch.cat(outs, dim=1)
