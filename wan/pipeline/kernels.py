"""Which kernels run the experts: whose attention, and whether blocks are compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..attention import Attention
from ..backends import BACKENDS, open_backend
from ..compiled import Apart, can_compile, through
from ..transformer.blocks import Branch, direct

COMPILED = "compiled blocks"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """A choice of kernels; see ``wan/backends.py`` and ``wan/compiled.py``.

    Attributes:
        attention: one of ``BACKENDS``.
        compiled: run the blocks through PyTorch's compiler, where there is a working one.
    """

    attention: str = BACKENDS[0]
    compiled: bool = False

    def changes(self) -> tuple[str, ...]:
        """What may round otherwise than the usual kernels do, in words."""
        attention = () if self.attention == BACKENDS[0] else (self.attention,)
        return (*attention, COMPILED) if self.compiled else attention

    def open(
        self, device: torch.device, dtype: torch.dtype
    ) -> tuple[Attention, Callable[[Branch], Branch]]:
        """The attention, and what branches go through, on ``device`` in ``dtype``.

        Raises:
            ValueError: the attention does not work there.
        """
        attention = open_backend(self.attention, device, dtype)
        if not (self.compiled and can_compile(device.type)):
            return attention, direct
        return Apart(attention), through()


USUAL = Kernels()
"""PyTorch's attention, nothing compiled."""
