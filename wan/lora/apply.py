"""LoRAs on a network of the library: at use, over whatever the weights are stored as."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain

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
    as they are, mapped or quantised. Each use of a weight costs its deltas once more. Deltas of
    weights that are on a card now go there too, in the dtype of the file.

    Args:
        model: one expert.
        loras: resolved on it, each with its strength (any real number); stacked in this order.

    Raises:
        ValueError: one was resolved on another network.
    """
    places = {
        f"{path}.{leaf}" if path else leaf: (module, leaf, stored)
        for path, module in model.named_modules()
        for leaf, stored in chain(
            module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        )
    }
    strangers = {name for resolved, _ in loras for name in resolved.deltas} - places.keys()
    if strangers:
        raise ValueError(
            f"a LoRA changes {min(strangers)}, which this model has not got; resolve it on this model"
        )
    patches: dict[str, list[Patch]] = {name: [] for name in places}
    for resolved, strength in loras:
        for name, delta in resolved.deltas.items():
            if strength:
                moved = delta.to(places[name][2].device)
                patches[name].append(partial(_change, moved, strength))
    for name, (module, leaf, _) in places.items():
        set_patches(module, leaf, patches[name])


def _change(delta: Delta, strength: float, weight: Tensor) -> Tensor:
    return delta.apply(weight, strength)
