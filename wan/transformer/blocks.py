"""The blocks of the transformer, which work on the tokens in parts and write into the hidden state.

Shape legend: B batch, L tokens, S text rows, D model dim, N heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..attention import Attention
from ..config import TransformerConfig
from ..layers import (
    Linear,
    Modulation,
    Ready,
    gelu,
    modulated_norm,
    weighted,
    write,
)
from ..ops import Ops, current
from ..rope import apply_rope
from .keys_values import PackedKeysValues, shared, spread
from .memory import EXACT, Memory

SLOTS = 6
SCRATCH = 20
"""Part of the sequence that is worked on at a time: its temporaries are about four hidden states of
these tokens, 0.2 of the whole."""
FEW_TOKENS, MANY_TOKENS = 1024, 4096
"""Below the first, matrix products are slow; above the second they get no faster."""


class Text(NamedTuple):
    """A prompt as one expert read it."""

    rows: Tensor
    """``(B, S, D)`` embedded rows."""
    bias: Tensor | None = None
    """``(S,)`` added to the scores of each row; None where every row counts once."""
    kept: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
    """Keys and values ``(B, S, N, D / N)`` by the layer that made them, from its first use on; None
    where they are made anew each time."""


def direct(branch: Branch) -> Branch:
    """A branch as it is."""
    return branch


class Tokens(NamedTuple):
    """What every block sees besides the hidden state."""

    time: Tensor
    """``(B, 6, D)`` float32, shared by all blocks before their own modulation is added."""
    text: Text
    """The prompt; the dtype of its rows is that of the computation."""
    rope: Tensor
    """``(L, 2, head_dim // 2)`` float32."""
    chunk: int
    """How many tokens are worked on at a time where no gradient is wanted."""
    memory: Memory = EXACT
    """What is held how where no gradient is wanted."""
    through: Callable[[Branch], Branch] = direct
    """What a branch goes through before it is run where no gradient is wanted, such as a compiler."""


Norm = Callable[[Tensor], Tensor]
"""Part of the hidden state to what a branch reads, in the compute dtype."""
Branch = Callable[[Tensor, slice], Tensor]
"""``(part of the hidden state, its place in the sequence)`` to what is added to that part."""
Gated = tuple[Branch, Tensor | None]
"""A branch and the factor ``(B, 1, D)`` of what it adds; None for 1."""
Attend = Callable[[Tensor], Tensor]
"""Queries ``(B, n, N, D / N)``, which may be overwritten, to what they attend, ``(B, n, D)``."""


def chunk_tokens(tokens: int) -> int:
    """How many of ``tokens`` tokens are worked on at a time, in parts of one size."""
    most = min(MANY_TOKENS, max(FEW_TOKENS, tokens // SCRATCH))
    return ceil(tokens / ceil(tokens / most))


def add(x: Tensor, branches: Sequence[Gated], tokens: Tokens) -> Tensor:
    """``x (B, L, D)`` and what each branch adds to what the ones before left.

    Without gradients in place, some tokens at a time, each part going through all branches.
    """
    if torch.is_grad_enabled():
        for branch, gate in branches:
            out = branch(x, slice(None))
            x = x + out if gate is None else torch.addcmul(x, out, gate)
        return x
    ways = [(tokens.through(branch), gate) for branch, gate in branches]
    for where in parts(x.shape[1], tokens.chunk):
        part = tokens.memory.take(x, where, tokens.time.device)
        for branch, gate in ways:
            out = branch(part, where)
            part.add_(out) if gate is None else part.addcmul_(out, gate)
            del out
        tokens.memory.put(part, x, where)
    return x


def parts(tokens: int, chunk: int) -> list[slice]:
    """The places of ``tokens`` tokens, ``chunk`` at a time."""
    return [slice(start, start + chunk) for start in range(0, tokens, chunk)]


class SelfAttention(nn.Module):
    """Attention over all tokens with full-width RMS-normed, rotated queries and keys."""

    def __init__(
        self, config: TransformerConfig, ops: Ops, attention: Attention, factory: dict[str, object]
    ) -> None:
        """Four biased projections of width ``dim`` and two RMS norms over the full ``dim``."""
        super().__init__()
        self.num_heads = config.num_heads
        self.attention = attention
        self.q = ops.Linear(config.dim, config.dim, **factory)
        self.k = ops.Linear(config.dim, config.dim, **factory)
        self.v = ops.Linear(config.dim, config.dim, **factory)
        self.o = ops.Linear(config.dim, config.dim, **factory)
        self.norm_q = ops.RMSNorm(config.dim, eps=config.eps, **factory)
        self.norm_k = ops.RMSNorm(config.dim, eps=config.eps, **factory)

    def heads(self, x: Tensor) -> Tensor:
        """``(B, L, D)`` to ``(B, L, N, D / N)``."""
        return rearrange(x, "b l (n d) -> b l n d", n=self.num_heads)

    def to_tokens(self, x: Tensor, norm: Norm, tokens: Tokens, make: Ready) -> Branch:
        """Attention of tokens to all of ``norm(x)``, whose keys and values are made here."""
        attend = self._attend(x, norm, tokens, make)
        query, output = make(self.q, tokens.text.rows), make(self.o, tokens.text.rows)

        def branch(part: Tensor, where: slice) -> Tensor:
            q = self._rotated(query(norm(part)), self.norm_q, tokens.rope[where])
            return output(attend(q))

        return branch

    def _attend(self, x: Tensor, norm: Norm, tokens: Tokens, make: Ready) -> Attend:
        """Attention to the keys and values of all tokens of ``x``."""
        key, value = make(self.k, tokens.text.rows), make(self.v, tokens.text.rows)
        if torch.is_grad_enabled():
            y = norm(x)
            k, v = self._rotated(key(y), self.norm_k, tokens.rope), self.heads(value(y))
            return lambda q: self.attention(q, k, v)
        if tokens.memory.int8:
            packed = self._packed(x, norm, tokens, key, value)
            return lambda q: packed.attend(q, self.attention)
        keys, values = self._keys_values(x, norm, tokens, key, value)
        return lambda q: self.attention(q, keys, values)

    def _keys_values(
        self, x: Tensor, norm: Norm, tokens: Tokens, key: Linear, value: Linear
    ) -> tuple[Tensor, Tensor]:
        """Rotated keys and values ``(B, L, N, D / N)`` of all tokens."""
        like = tokens.text.rows
        keys, values = (
            torch.empty(x.shape, dtype=like.dtype, device=like.device) for _ in range(2)
        )
        for where in parts(x.shape[1], tokens.chunk):
            y = norm(tokens.memory.take(x, where, like.device))
            write(value, y, values[:, where])
            k = key(y)
            del y
            self._rotated(k, self.norm_k, tokens.rope[where], self.heads(keys[:, where]))
        return self.heads(keys), self.heads(values)

    def _packed(
        self, x: Tensor, norm: Norm, tokens: Tokens, key: Linear, value: Linear
    ) -> PackedKeysValues:
        """Rotated keys and values of all tokens in eight bits."""
        device = tokens.text.rows.device

        def part(where: slice) -> Tensor:
            return norm(tokens.memory.take(x, where, device))

        def rotated(k: Tensor, where: slice) -> Tensor:
            return self._rotated(k, self.norm_k, tokens.rope[where])

        centre = shared([rotated(key(part(where)), where) for where in spread(x.shape[1])])
        packed = PackedKeysValues(x.shape[1], centre)
        for where in parts(x.shape[1], tokens.chunk):
            y = part(where)
            packed.values.write(where, self.heads(value(y)))
            k = key(y)
            del y
            packed.keys.write(where, rotated(k, where))
            del k
        return packed

    def _rotated(
        self, x: Tensor, norm: nn.Module, rope: Tensor, out: Tensor | None = None
    ) -> Tensor:
        """``x (B, L, D)`` normed and rotated, ``(B, L, N, D / N)``; without gradients or ``out`` in place of ``x``."""
        if out is None and not torch.is_grad_enabled():
            out = self.heads(x)
        rows, scale = weighted(norm, x)
        turn = rope if scale is None else rope * scale[..., None]
        return apply_rope(self.heads(rows), turn, out)


class CrossAttention(SelfAttention):
    """Attention from tokens to text rows: no rotation; rows after the text are attended too."""

    def to_text(self, norm: Norm, tokens: Tokens, make: Ready) -> Branch:
        """Attention of tokens to the text, whose keys and values are made here unless they are kept."""
        text = tokens.text
        keys, values = self._kept(text)
        bias = () if text.bias is None else (text.bias,)
        query, output = make(self.q, text.rows), make(self.o, text.rows)

        def branch(part: Tensor, where: slice) -> Tensor:
            q = self.heads(self.norm_q(query(norm(part))))
            return output(self.attention(q, keys, values, *bias))

        return branch

    def has_read(self, text: Text) -> bool:
        """Whether keys and values of this text are kept, so that the weights that make them rest."""
        return text.kept is not None and self in text.kept

    def _kept(self, text: Text) -> tuple[Tensor, Tensor]:
        """Keys and values of the text rows."""
        if text.kept is not None and self in text.kept:
            return text.kept[self]
        pair = self.heads(self.norm_k(self.k(text.rows))), self.heads(self.v(text.rows))
        if text.kept is not None:
            text.kept[self] = pair
        return pair


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last are modulated."""

    def __init__(
        self,
        config: TransformerConfig,
        ops: Ops,
        attention: Attention,
        make: Ready,
        factory: dict[str, object],
    ) -> None:
        """``norm3`` (official name) is the affine norm before cross-attention."""
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.make = make
        self.self_attn = SelfAttention(config, ops, attention, factory)
        self.norm3 = ops.LayerNorm(dim, eps=config.eps, **factory)
        self.cross_attn = CrossAttention(config, ops, attention, factory)
        self.ffn = nn.Sequential(
            ops.Linear(dim, config.ffn_dim, **factory),
            nn.GELU(approximate="tanh"),
            ops.Linear(config.ffn_dim, dim, **factory),
        )
        self.modulation = nn.Parameter(torch.empty(1, SLOTS, dim, **factory))  # type: ignore[call-overload]

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Map the hidden state ``(B, L, D)`` to the next one; without gradients it is ``x``, overwritten."""
        branches = self._branches(x, tokens)
        if tokens.memory.hidden_on is not None and not torch.is_grad_enabled():
            return add(x, list(branches), tokens)  # one journey for all three
        for branch in branches:
            x = add(x, [branch], tokens)
            del branch  # its keys and weights, before the next one makes its own
        return x

    def _branches(self, x: Tensor, tokens: Tokens) -> Iterator[Gated]:
        """The three branches in their order, each made when it is asked for."""
        self_mod, ffn_mod = self._modulation(tokens.time)
        dtype, make = tokens.text.rows.dtype, self.make

        def normed(mod: Modulation) -> Norm:
            return lambda part: modulated_norm(part, mod.shift, mod.scale, self.eps).to(dtype)

        yield self.self_attn.to_tokens(x, normed(self_mod), tokens, make), self_mod.gate.to(x.dtype)
        yield self.cross_attn.to_text(lambda part: self.norm3(part).to(dtype), tokens, make), None
        yield self._feed_forward(normed(ffn_mod), tokens.text.rows), ffn_mod.gate.to(x.dtype)

    def _feed_forward(self, norm: Norm, like: Tensor) -> Branch:
        wide, narrow = self.make(self.ffn[0], like), self.make(self.ffn[2], like)
        return lambda part, where: narrow(gelu(wide, norm(part)))

    def _modulation(self, time: Tensor) -> tuple[Modulation, Modulation]:
        rows = (current(self, "modulation", time) + time).chunk(SLOTS, dim=1)
        return Modulation(*rows[:3]), Modulation(*rows[3:])


class Head(nn.Module):
    """Modulated norm and projection to patch values, in float32."""

    def __init__(self, config: TransformerConfig, ops: Ops, factory: dict[str, object]) -> None:
        """The projection gives ``out_dim`` values per latent cell of the patch."""
        super().__init__()
        self.eps = config.eps
        patch_volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = ops.Linear(config.dim, patch_volume * config.out_dim, **factory)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, **factory))  # type: ignore[call-overload]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x (B, L, D)``, ``time (B, D)`` (before the slot projection) to ``(B, L, 4 C)``."""
        shift, scale = (current(self, "modulation", time) + time[:, None]).chunk(2, dim=1)
        out: Tensor = self.head(modulated_norm(x.float(), shift, scale, self.eps))
        return out
