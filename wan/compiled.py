"""The branches of a block compiled once, for all blocks, steps and experts.

A branch is a function made anew in each block, but its code is one: what differs between blocks are the
tensors it closes over, which a compiled graph takes as inputs. Weights are made ready before (cast,
fetched, unpacked, with their LoRAs), so neither a LoRA nor a weight that moved is part of the graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor

from .attention import Attention
from .transformer import WanTransformer
from .transformer.blocks import Branch, direct

log = logging.getLogger(__name__)

Backend = str | Callable[..., object]
INDUCTOR = "inductor"


class Apart:
    """Attention that is called from compiled code and stays out of it: a host's looks at its options."""

    def __init__(self, attention: Attention) -> None:
        """``attention`` has the one signature of :mod:`.attention`."""
        self.attention = attention

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> Tensor:
        """As ``attention``."""
        out: Tensor = _attend(self.attention, q, k, v, *bias)
        return out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _attend(attention: Attention, *given: Tensor) -> Tensor:
    return attention(*given)


def through(backend: Backend = INDUCTOR) -> Callable[[Branch], Branch]:
    """What compiles a branch: for :attr:`WanTransformer.through` and :attr:`Tokens.through`."""
    # Sizes are inputs too: the last part of a sequence is shorter, and another clip has other sizes.
    return partial(torch.compile, backend=backend, dynamic=True)


def compile_blocks(model: WanTransformer, backend: Backend = INDUCTOR) -> bool:
    """Let the blocks of ``model`` run compiled; without a working compiler they stay as they are.

    Returns:
        Whether they do.
    """
    device = next(model.parameters()).device
    works = backend != INDUCTOR or can_compile(device.type)
    model.through = through(backend) if works else direct
    return works


@cache
def can_compile(device: str) -> bool:
    """Whether PyTorch's compiler works for a kind of device; if not the log says why, once."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=device))
    except Exception as error:  # noqa: BLE001 - what is missing differs: a compiler, triton, a header
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        log.warning(
            "torch.compile does not work here (%s); blocks run uncompiled, install a C++ compiler or "
            "triton to compile them", why,
        )  # fmt: skip
        return False
    return True
