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
