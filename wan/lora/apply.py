"""LoRAs on a network of the library: at use, over whatever the weights are stored as."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ..ops import Patch, set_patches
from ..transformer import WanTransformer
from .deltas import Delta
from .resolve import Resolved

_META = torch.device("meta")


def parameter_shapes(model: WanTransformer) -> dict[str, tuple[int, ...]]:
    """Official parameter names of an expert -> logical shapes, as :func:`.resolve.resolve` takes them."""
    plain = WanTransformer(model.config, device=_META)
    return {name: tuple(p.shape) for name, p in plain.named_parameters()}


def apply_loras(model: WanTransformer, loras: Sequence[tuple[Resolved, float]]) -> None:
    """Let LoRAs act on an expert whenever its weights are used.

    They replace all patches the model had, so () takes every LoRA off, exactly. Stored weights stay
    as they are, mapped or quantised. Each use of a weight costs its deltas once more.

    Args:
        model: one expert.
        loras: resolved on it, each with its strength (any real number); stacked in this order.

    Raises:
        ValueError: one was resolved on another network.
    """
    patches: dict[str, list[Patch]] = {}
    for resolved, strength in loras:
        for name, delta in resolved.deltas.items():
            if strength:
                patches.setdefault(name, []).append(partial(_change, delta, strength))
    places = {
        f"{path}.{leaf}" if path else leaf: (module, leaf)
        for path, module in model.named_modules()
        for leaf, _ in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]
    }
    if strangers := sorted(patches.keys() - places.keys()):
        raise ValueError(
            f"a LoRA changes {strangers[0]}, which this model has not got; resolve it on this model"
        )
    for name, (module, leaf) in places.items():
        set_patches(module, leaf, patches.get(name, ()))


def _change(delta: Delta, strength: float, weight: Tensor) -> Tensor:
    return delta.apply(weight, strength)
