"""Which memory design runs: the first that fits the device, never a silent one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..transformer import DESIGNS, EXACT, Memory
from .text import quantity

AUTO = "auto"
CHOICES = (AUTO, *DESIGNS)
"""What a person may ask for: a design by its name, or the first that fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A memory design and why it runs.

    Attributes:
        memory: the design.
        note: a sentence for the plan; "" for the exact design where it was chosen because it fits.
    """

    memory: Memory
    note: str = ""


def choose_design(
    asked: str, *, device: torch.device, room: int, needed: Callable[[Memory], int]
) -> Choice:
    """The design that was asked for by its name, or for ``auto`` the first of all that fits.

    Args:
        asked: one of :data:`CHOICES`.
        device: where the computation is; a hidden state on the host saves nothing on a CPU.
        room: bytes of the device for everything beside the weights.
        needed: bytes that a design needs there.

    Raises:
        ValueError: ``asked`` is none of them.
    """
    if asked not in CHOICES:
        raise ValueError(f"memory={asked!r} is not known; use one of {', '.join(CHOICES)}")
    if asked != AUTO:
        memory = DESIGNS[asked]
        return Choice(
            memory=memory, note="" if memory == EXACT else f"memory {asked}: {memory.told}"
        )
    exact = needed(EXACT)
    if exact <= room:
        return Choice(memory=EXACT)
    smaller = EXACT.smaller(device)
    memory = next((memory for memory in smaller if needed(memory) <= room), smaller[-1])
    short = "" if needed(memory) <= room else "; even that may not fit"
    return Choice(
        memory=memory,
        note=f"memory {memory.name}: {memory.told}; the exact design would take "
        f"{quantity(exact, 'B')} of the {quantity(room, 'B')} there are for it{short}",
    )
