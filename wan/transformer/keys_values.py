"""Keys and values of all tokens: as they are, or in eight bits.

An integer of eight bits times a scale of its token and head stands for a number. Keys are taken less
one vector per head that all of them share: the scores of a query all change by the same amount, and
softmax does not see it, but what is left is smaller.

Shape legend: B batch, L tokens, n some of them, N heads, g some of them, D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..attention import Attention

LARGEST = 127
PIECE = 512
"""Tokens that are packed at a time, because they are taken wide for it."""
HEADS = 20
"""Part of the heads whose keys and values are unpacked at a time: those of a tenth of a hidden state."""


RUNS, RUN = 16, 64
"""How many runs of how many tokens, spread over all, the shared vector of the keys is taken from."""


def spread(tokens: int) -> list[slice]:
    """The places of a few of ``tokens`` tokens that stand for all."""
    starts = {int(at * max(0, tokens - RUN) / (RUNS - 1)) for at in range(RUNS)}
    return [slice(start, start + RUN) for start in sorted(starts)]


def shared(keys: Sequence[Tensor]) -> Tensor:
    """The mean ``(B, 1, N, D)`` float32 of keys ``(B, n, N, D)``; any other vector would be right too."""
    return torch.stack([part.float().mean(1, keepdim=True) for part in keys]).mean(0)


class Packed:
    """Numbers ``(B, L, N, D)`` in eight bits, written some tokens and read some heads at a time."""

    def __init__(self, tokens: int, centre: Tensor) -> None:
        """Room for ``tokens`` tokens, which are taken less ``centre (B, 1, N, D)`` float32."""
        batch, _, heads, dim = centre.shape
        self._centre = centre
        self._codes = centre.new_empty(batch, tokens, heads, dim, dtype=torch.int8)
        self._scales = centre.new_empty(batch, tokens, heads, 1)

    def write(self, where: slice, x: Tensor) -> None:
        """Pack the tokens ``where``, ``x (B, n, N, D)``."""
        places = self._codes[:, where], self._scales[:, where], x
        for codes, scales, part in zip(
            *(torch.split(t, PIECE, dim=1) for t in places), strict=True
        ):
            left = part - self._centre
            scale = torch.linalg.vector_norm(left, torch.inf, dim=-1, keepdim=True).div_(LARGEST)
            scales.copy_(scale.clamp_(min=torch.finfo(torch.float32).tiny))
            codes.copy_(left.div_(scale).round_())

    def read(self, heads: int, dtype: torch.dtype) -> Iterator[Tensor]:
        """The numbers less the centre, ``heads`` heads of all tokens at a time, ``(B, L, g, D)``."""
        places = self._codes, self._scales
        for codes, scales in zip(*(torch.split(t, heads, dim=2) for t in places), strict=True):
            yield torch.mul(codes, scales, out=torch.empty_like(codes, dtype=dtype))


class PackedKeysValues:
    """Keys and values ``(B, L, N, D)`` in eight bits."""

    def __init__(self, tokens: int, centre: Tensor) -> None:
        """Room for those of ``tokens`` tokens; ``centre (B, 1, N, D)`` float32 is what keys share."""
        self.keys, self.values = Packed(tokens, centre), Packed(tokens, torch.zeros_like(centre))

    def attend(self, q: Tensor, attention: Attention) -> Tensor:
        """Attention of ``q (B, n, N, D)``, which is overwritten, to all tokens: ``(B, n, N * D)``."""
        step = max(1, q.shape[2] // HEADS)
        keys, values = (packed.read(step, q.dtype) for packed in (self.keys, self.values))
        for queries in torch.split(q, step, dim=2):
            out = attention(queries.contiguous(), next(keys), next(values))
            queries.copy_(out.view(queries.shape))
        return q.flatten(2)
