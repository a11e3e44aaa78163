"""Which memory design a run inside ComfyUI begins with: exact, unless the whole device is too small for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.model_management as mm

from ...wan.cost import AUTO, Choice, choose_design
from ...wan.transformer import EXACT, Memory, WanTransformer


def design_of_run(models: Sequence[Any], shape: Sequence[int]) -> Choice:
    """The design for latents ``shape`` (B, C, T, h, w), one conditioning at a time; networks of others have one.

    Counted against the device as a whole, so that a run gives the same numbers whatever is loaded:
    ComfyUI makes room, and needs no more of a MODEL there than a block.
    """
    ours = [model for model in models if _is_ours(model.model)]
    if not ours or len(shape) != 5:
        return Choice(memory=EXACT)
    model, device = ours[0], ours[0].load_device
    block = model.model_size() // (model.model.diffusion_model.config.num_layers + 1)

    def needed(memory: Memory) -> int:
        with using(model.model, memory):
            return int(model.model.memory_required(list(shape)))

    room = mm.get_total_memory(device) - mm.extra_reserved_memory() - block
    return choose_design(AUTO, device=device, room=int(room), needed=needed)


def smaller_designs(models: Sequence[Any], memory: Memory) -> list[Memory]:
    """What else MODELs can give up that run in ``memory``; nothing where all are networks of others."""
    ours = [model for model in models if _is_ours(model.model)]
    return memory.smaller(ours[0].load_device) if ours else []


@contextmanager
def using(model: Any, memory: Memory) -> Iterator[None]:
    """While a ComfyUI model runs in ``memory``; networks of others run as they do."""
    if not _is_ours(model):
        yield
        return
    network = model.diffusion_model
    before, network.memory = network.memory, memory
    try:
        yield
    finally:
        network.memory = before


def _is_ours(model: Any) -> bool:
    return isinstance(getattr(model, "diffusion_model", None), WanTransformer)
