"""Blocks whose weights lie in pinned host memory and are copied a block ahead of their use."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from wan.transformer import Tokens, WanTransformer


class Ring:
    """The two blocks of a model as two slots of the device, filled in turns from host memory.

    Copies run on a stream of their own: a slot is filled as soon as its last use has ended, while the
    other slot computes. Nothing is ever copied back. On a CPU, where there are no streams, the same
    copies are made in between.
    """

    def __init__(self, model: WanTransformer, device: torch.device, *, experts: int) -> None:
        """Take the blocks of ``model`` as slots, and as many sets of host copies as there are experts."""
        self._slots = list(model.blocks)
        self._parameters = [list(slot.parameters()) for slot in self._slots]
        gpu = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if gpu else None
        self._host = [
            [[_pinned(p, gpu) for p in parameters] for parameters in self._parameters]
            for _ in range(experts)
        ]
        self._ready = [torch.cuda.Event() if gpu else None for _ in self._slots]
        self._free = [torch.cuda.Event() if gpu else None for _ in self._slots]

    @property
    def nbytes(self) -> int:
        """Of one block."""
        return sum(p.nbytes for p in self._parameters[0])

    def run(
        self, hidden: Tensor, tokens: Tokens, uses: int, *, copy: bool = True, compute: bool = True,
        swap: int | None = None, ahead: bool = True,
    ) -> None:  # fmt: skip
        """Go through ``uses`` blocks; from ``swap`` on they are the second expert's.

        Args:
            copy: whether weights are copied at all.
            compute: whether blocks run.
            ahead: whether blocks of the second expert may be fetched before the first has ended.
        """
        fetched = 0
        for use in range(uses):
            # Two slots: this block, and the next one while this one runs.
            limit = uses if ahead or swap is None or use >= swap else swap
            while copy and fetched < min(use + len(self._slots), limit):
                self._fetch(fetched, int(swap is not None and fetched >= swap))
                fetched += 1
            slot = use % len(self._slots)
            self._wait(self._ready[slot], copy)
            if compute:
                hidden = self._slots[slot](hidden, tokens)
            if (free := self._free[slot]) is not None:
                free.record()

    def _fetch(self, use: int, expert: int) -> None:
        slot = use % len(self._slots)
        there, free = self._copies, self._free[slot]
        with contextlib.nullcontext() if there is None else torch.cuda.stream(there):
            if there is not None and free is not None:
                there.wait_event(free)
            for parameter, host in zip(
                self._parameters[slot], self._host[expert][slot], strict=True
            ):
                parameter.copy_(host, non_blocking=True)
            if (ready := self._ready[slot]) is not None:
                ready.record()

    def _wait(self, ready: torch.cuda.Event | None, copy: bool) -> None:
        if copy and ready is not None:
            torch.cuda.current_stream().wait_event(ready)


def _pinned(parameter: Tensor, gpu: bool) -> Tensor:
    host = parameter.detach().cpu().clone()
    return host.pin_memory() if gpu else host
