"""ComfyUI's attention behind the library's one signature."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy.ldm.modules.attention import attention_pytorch, optimized_attention
from einops import rearrange
from torch import Tensor

from .interrupt import ATTENTION, check_interrupted, goes_through


class HostAttention:
    """ComfyUI's attention, with the options of the call under way."""

    def __init__(self) -> None:
        """Start without options; :class:`HostTransformer` sets them for each forward."""
        self.options: dict[str, Any] = {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """``(B, L, N, D)`` each to ``(B, L, N * D)``; ends here if the user asked for it."""
        check_interrupted()
        length, heads = q.shape[1:3]
        q, k, v = (rearrange(t, "b l n d -> b l (n d)") for t in (q, k, v))
        # Not every backend takes the argument, so none gets it without need.
        mask = {} if bias is None else {"mask": bias.expand(length, -1)}
        return optimized_attention(q, k, v, heads=heads, transformer_options=self.options, **mask)


def adds_bias(options: Mapping[str, Any]) -> bool:
    """Whether attention adds a bias to its scores, and nobody counts the rows of the text.

    Other backends and overrides may drop one without a word.
    """
    looked_at = options.get("patches_replace", {}).get("dit")
    native = optimized_attention is attention_pytorch and goes_through(options.get(ATTENTION))
    return native and not looked_at
