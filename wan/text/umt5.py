"""The umT5 encoder: T5 v1.1 blocks in which every layer owns its relative position table.

Attribute names are the official checkpoint's keys. Weighted layers come from an :class:`Ops`, so a
host may keep their weights on another device or in another dtype; nothing here reads a weight
except :class:`T5Norm`, which casts it at use.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..config import TextConfig
from ..ops import Ops, TorchOps, cast_like

_FLOAT16_HEADROOM = 1000.0
_COMPUTE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def bucket_edges(num_buckets: int, max_distance: int) -> list[int]:
    """Distances at which each bucket after 0 begins, on one side (before or after the query).

    Half of a side's buckets are exact distances, the other half grows geometrically and would end
    at ``max_distance``. Edges are found in integers, so no logarithm can round to the wrong side.
    """
    side = num_buckets // 2
    exact = side // 2
    grown = side - exact
    edges = list(range(1, exact + 1))
    for k in range(1, grown):
        a = edges[-1]
        while a**grown * exact**k < max_distance**k * exact**grown:
            a += 1
        edges.append(a)
    return edges


def position_buckets(
    length: int, *, num_buckets: int, max_distance: int, device: torch.device | None = None
) -> Tensor:
    """Bucket of every (query, key) pair, (length, length) int64; keys after the query use the upper half."""
    position = torch.arange(length, device=device)
    relative = position[None, :] - position[:, None]
    edges = torch.tensor(bucket_edges(num_buckets, max_distance), device=device)
    bucket = torch.bucketize(relative.abs(), edges, right=True)
    return bucket + (relative > 0) * (num_buckets // 2)


def clamp_float16(x: Tensor) -> Tensor:
    """Pull a float16 residual stream that reached infinity back into range; other dtypes pass through."""
    if x.dtype != torch.float16:
        return x
    top = torch.finfo(x.dtype).max
    # A tensor limit, not a Python branch: reading the flag would stall the GPU at every residual.
    limit = torch.where(x.isinf().any(), top - _FLOAT16_HEADROOM, top)
    return x.clamp(min=-limit, max=limit)


class T5Norm(nn.Module):
    """RMS norm with fp32 statistics, rounded to the activation dtype before the weight is applied."""

    def __init__(self, dim: int, eps: float, factory: dict[str, Any]) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, **factory))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x`` (..., dim)."""
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return cast_like(self.weight, x) * (wide * scale).to(x.dtype)


class T5Attention(nn.Module):
    """Self attention without a 1/sqrt(d) scale; the logits get a position bias and a key mask."""

    def __init__(self, config: TextConfig, ops: Ops, factory: dict[str, Any]) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        sizes = config.dim, config.attn_dim
        self.q = ops.Linear(*sizes, bias=False, **factory)
        self.k = ops.Linear(*sizes, bias=False, **factory)
        self.v = ops.Linear(*sizes, bias=False, **factory)
        self.o = ops.Linear(*reversed(sizes), bias=False, **factory)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """``x`` (B, L, dim), ``bias`` (1|B, heads, L, L) -> (B, L, dim)."""
        q, k, v = (
            rearrange(layer(x), "b l (n d) -> b n l d", n=self.num_heads)
            for layer in (self.q, self.k, self.v)
        )
        logits = q @ k.transpose(-1, -2) + bias
        weights = logits.softmax(dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        out: Tensor = self.o(rearrange(weights.to(x.dtype) @ v, "b n l d -> b l (n d)"))
        return out


class T5FeedForward(nn.Module):
    """Gated feed forward: ``fc2(fc1(x) * gelu_tanh(gate(x)))``."""

    def __init__(self, config: TextConfig, ops: Ops, factory: dict[str, Any]) -> None:
        super().__init__()
        sizes = config.dim, config.ffn_dim
        self.gate = nn.Sequential(ops.Linear(*sizes, bias=False, **factory), nn.GELU("tanh"))
        self.fc1 = ops.Linear(*sizes, bias=False, **factory)
        self.fc2 = ops.Linear(*reversed(sizes), bias=False, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, L, dim) -> (B, L, dim)."""
        out: Tensor = self.fc2(self.fc1(x) * self.gate(x))
        return out


class T5RelativeEmbedding(nn.Module):
    """One layer's table of position biases, (buckets, heads)."""

    def __init__(self, config: TextConfig, ops: Ops, factory: dict[str, Any]) -> None:
        super().__init__()
        self.embedding = ops.Embedding(config.num_buckets, config.num_heads, **factory)

    def forward(self, buckets: Tensor) -> Tensor:
        """``buckets`` (L, L) -> bias (1, heads, L, L) in the table's dtype."""
        bias: Tensor = rearrange(self.embedding(buckets), "q k n -> 1 n q k")
        return bias


class T5Block(nn.Module):
    """Attention and feed forward, each behind a norm and a residual."""

    def __init__(self, config: TextConfig, ops: Ops, factory: dict[str, Any]) -> None:
        super().__init__()
        self.norm1 = T5Norm(config.dim, config.eps, factory)
        self.attn = T5Attention(config, ops, factory)
        self.norm2 = T5Norm(config.dim, config.eps, factory)
        self.ffn = T5FeedForward(config, ops, factory)
        self.pos_embedding = T5RelativeEmbedding(config, ops, factory)

    def forward(self, x: Tensor, buckets: Tensor, mask: Tensor | None) -> Tensor:
        """``x`` (B, L, dim), ``buckets`` (L, L), ``mask`` (B, L), nonzero = attend -> (B, L, dim)."""
        bias = self.pos_embedding(buckets).to(x.dtype)
        if mask is not None:
            hidden = rearrange(mask == 0, "b k -> b 1 1 k")
            bias = bias.masked_fill(hidden, torch.finfo(x.dtype).min)
        x = clamp_float16(x + self.attn(self.norm1(x), bias))
        return clamp_float16(x + self.ffn(self.norm2(x)))


class UMT5Encoder(nn.Module):
    """Text encoder of the Wan family; see ``TextConfig`` for its sizes.

    ``head_dim`` is ``attn_dim // num_heads``; raises ValueError if that does not divide.
    """

    def __init__(
        self,
        config: TextConfig,
        *,
        ops: Ops = TorchOps,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if config.attn_dim % config.num_heads:
            raise ValueError(
                f"attn_dim={config.attn_dim} is not a multiple of num_heads={config.num_heads}; "
                "use sizes that divide"
            )
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.token_embedding = ops.Embedding(config.vocab_size, config.dim, **factory)
        self.blocks = nn.ModuleList(T5Block(config, ops, factory) for _ in range(config.num_layers))
        self.norm = T5Norm(config.dim, config.eps, factory)

    def forward(
        self, ids: Tensor, mask: Tensor | None = None, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Encode token ids.

        Args:
            ids: (B, L) int64 pieces, end token included.
            mask: (B, L), nonzero where a token may be attended; None attends all.
            dtype: what activations are computed in. None takes the dtype of the embedding's output
                (float32 if that is a storage-only format such as float8). Anything else than the
                weights' dtype needs layers that cast, as a host's do.

        Returns:
            Hidden states (B, L, dim) in the compute dtype; rows under a zero mask are meaningless.
        """
        x = self.token_embedding(ids)
        x = x.to(dtype or (x.dtype if x.dtype in _COMPUTE_DTYPES else torch.float32))
        buckets = position_buckets(
            ids.shape[1],
            num_buckets=self.config.num_buckets,
            max_distance=self.config.max_distance,
            device=ids.device,
        )
        for block in self.blocks:
            x = block(x, buckets, mask)
        out: Tensor = self.norm(x)
        return out
