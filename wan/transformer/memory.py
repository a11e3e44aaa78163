"""Where a forward keeps its three large things: the hidden state, the keys and the values.

Without gradients. With gradients everything is kept as it comes, and a :class:`Memory` has no say.

Shape legend: B batch, L tokens, D model dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a forward gives up to hold less than three hidden states.

    Attributes:
        int8: keys and values of self-attention in eight bits, which changes the numbers; see
            ``keys_values.py``. One hidden state less in 16 bits.
        hidden_on: device of the hidden state, whose parts travel to the computation and back; None
            for the device of the computation. One hidden state less there, the same numbers.
    """

    int8: bool = False
    hidden_on: torch.device | None = None

    @property
    def name(self) -> str:
        """The design in a word: a key of :data:`DESIGNS` where the hidden state is on the host."""
        told = [*(["int8"] if self.int8 else []), *(["host"] if self.hidden_on else [])]
        return "+".join(told) or "exact"

    @property
    def changes(self) -> tuple[str, ...]:
        """What of it changes the numbers, in words."""
        return ("keys and values in 8 bits",) if self.int8 else ()

    @property
    def told(self) -> str:
        """What is given up, in words."""
        host = ("the hidden state in main memory",) if self.hidden_on else ()
        sames = "near the exact numbers, not equal to them" if self.changes else "the same numbers"
        return f"{' and '.join((*host, *self.changes)) or 'all on the device'} ({sames})"

    def smaller(self, device: torch.device) -> list[Memory]:
        """The designs that give up more than this one, in their order; a CPU is its own host."""
        return [
            other
            for other in DESIGNS.values()
            if other != self
            and other.int8 >= self.int8
            and (other.hidden_on or self.hidden_on) == other.hidden_on != device
        ]

    def hold(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Room for the hidden state of a computation on ``device``; pinned where CUDA fetches it."""
        on = self.hidden_on or device
        pinned = device.type == "cuda" and on.type == "cpu"
        return torch.empty(shape, dtype=dtype, device=on, pin_memory=pinned)

    def take(self, hidden: Tensor, where: slice, device: torch.device) -> Tensor:
        """A part of the hidden state on ``device``: a copy if it travels, else a view."""
        part = hidden[:, where]
        if self.hidden_on is None:
            return part
        return part.to(device, non_blocking=hidden.is_pinned(), copy=True)

    def put(self, part: Tensor, hidden: Tensor, where: slice) -> None:
        """Bring back what :meth:`take` gave.

        A copy that does not block ends before the next one from the same place begins, because both
        are in one stream; nothing else may look at a pinned hidden state.
        """
        if self.hidden_on is not None:
            hidden[:, where].copy_(part, non_blocking=hidden.is_pinned())


EXACT = Memory()
_HOST = torch.device("cpu")
DESIGNS = {
    memory.name: memory
    for memory in (
        EXACT,
        Memory(hidden_on=_HOST),
        Memory(int8=True),
        Memory(int8=True, hidden_on=_HOST),
    )
}
"""The designs by name, in the order in which they are tried where memory is short: exact ones first."""
