"""Seconds of a forward: one block of random weights, timed at the shape of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..attention import sdpa
from ..config import TransformerConfig
from ..shapes import LatentShape, token_grid
from ..transformer import Tokens, WanTransformer
from .flops import block_flops, forward_flops, outside_flops

REPEATS = 3
TOO_LONG = 20.0
"""Seconds of one block beyond which it is timed on fewer tokens instead."""
_PROBE = 1024
"""Tokens of the first look at how fast a machine is."""
_ROWS = 256
"""Queries that stand for all where attention over all would take too long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """How long one forward of one latent took.

    Attributes:
        seconds: of the forward.
        flops: of the forward, :func:`~.flops.forward_flops`.
        source: what was measured, for reports.
    """

    seconds: float
    flops: int
    source: str

    def seconds_for(self, flops: int) -> float:
        """Seconds of a forward of ``flops`` operations at the same rate."""
        return self.seconds * flops / self.flops


Clock = Callable[[], float]


def time_block(
    config: TransformerConfig,
    shape: LatentShape,
    dtype: torch.dtype,
    device: torch.device,
    *,
    clock: Clock = time.perf_counter,
) -> Measurement:
    """Time one block of random weights, and what is outside the blocks, at ``shape``.

    One block takes what all take, so a forward is their number times it and the rest. Where a block
    would take longer than ``TOO_LONG`` at this shape, it is timed on fewer tokens and their attention on
    its own, for a few of the rows: everything else grows with the tokens.

    Args:
        config: sizes of the expert.
        shape: latents of one clip.
        dtype: of the computation and the weights; their size decides, not their values.
        device: where to run; takes the memory of one block and its activations.
        clock: seconds; another one for tests and for machines that do other work.
    """
    model = WanTransformer(replace(config, num_layers=1), device=device, dtype=dtype).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.uniform_(-0.02, 0.02)
    tokens = token_grid(*shape[1:]).tokens
    watch = _Watch(model, dtype, device, clock)
    block = watch.block(min(_PROBE, tokens))
    if tokens <= _PROBE:
        outside = watch.outside(shape)
    elif block * block_flops(config, tokens) / block_flops(config, _PROBE) <= TOO_LONG:
        block, outside = watch.block(tokens), watch.outside(shape)
    else:
        alike = _PROBE * watch.attention(_ROWS, _PROBE) / _ROWS
        block = tokens * ((block - alike) / _PROBE + watch.attention(_ROWS, tokens) / _ROWS)
        outside = block * outside_flops(config, tokens) / block_flops(config, tokens)
    return Measurement(
        seconds=config.num_layers * block + outside,
        flops=forward_flops(config, tokens),
        source="one timed block",
    )


class _Watch:
    """Times parts of a model of one block; the fastest of a few repeats counts."""

    def __init__(
        self, model: WanTransformer, dtype: torch.dtype, device: torch.device, clock: Clock
    ) -> None:
        self._model, self._dtype, self._device, self._clock = model, dtype, device, clock
        config = model.config
        self._timestep = torch.full((1,), 500.0, device=device)
        self._context = torch.zeros(1, config.text_len, config.text_dim, device=device)

    def block(self, tokens: int) -> float:
        """Seconds of the block over ``tokens`` tokens."""
        config = self._model.config
        # The rotation of one long row costs what that of a clip costs.
        hidden, _, seen = self._embed(LatentShape(config.in_dim, 1, 2, 2 * tokens))
        return self._fastest(lambda: self._model.blocks[0](hidden, seen))

    def attention(self, rows: int, tokens: int) -> float:
        """Seconds of self-attention alone, of ``rows`` queries to ``tokens`` keys."""
        config = self._model.config
        heads = config.num_heads, config.dim // config.num_heads
        q, k = (
            torch.zeros(1, length, *heads, dtype=self._dtype, device=self._device)
            for length in (rows, tokens)
        )
        return self._fastest(lambda: sdpa(q, k, k))

    def outside(self, shape: LatentShape) -> float:
        """Seconds of what comes before and after the blocks."""
        grid = token_grid(*shape[1:])

        def run() -> None:
            hidden, time_rows, _ = self._embed(shape)
            self._model.unembed(hidden, time_rows, grid)

        return self._fastest(run)

    def _embed(self, shape: LatentShape) -> tuple[Tensor, Tensor, Tokens]:
        x = torch.zeros(1, *shape, dtype=self._dtype, device=self._device)
        return self._model.embed(x, self._timestep, self._context, token_grid(*shape[1:]))

    def _fastest(self, run: Callable[[], object]) -> float:
        found = []
        with torch.no_grad():
            run()
            for _ in range(REPEATS):
                self._wait()
                start = self._clock()
                run()
                self._wait()
                found.append(self._clock() - start)
        return min(found)

    def _wait(self) -> None:
        if self._device.type != "cpu":
            getattr(torch, self._device.type).synchronize()
