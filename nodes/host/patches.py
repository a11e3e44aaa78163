"""The host's weight patches on parameters that its loading passes over.

ComfyUI accepts a patch (of a LoRA, a merge ...) on any key. It applies those on modules that have no
children, and drops the others without a word: in a Wan network every ``modulation``. Nor can it
write a patched weight back into a packed one. The library's layers take both as functions of the
weight at use (``wan.ops.set_patches``), renewed here whenever the host loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import comfy.lora
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ...wan.ops import Patch, has_patches, patched, set_patches
from ...wan.quant.layers import PackedLayer

KEY = "wan_experts"


def patch_at_use(patcher: Any) -> None:
    """Let patches on ``patcher`` and its clones, from whatever node, act where the host drops them."""
    patcher.add_callback_with_key(CallbacksMP.ON_LOAD, KEY, _renew)
    patcher.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, _forget)


def _renew(patcher: Any, *_: Any) -> None:
    for module, name, key in passed_over(patcher.model):
        # The host's patches work in place; unpacked numbers are nobody else's.
        copy = not isinstance(module, PackedLayer)
        set_patches(module, name, _functions(patcher, key, copy))


def _forget(patcher: Any, unpatch_all: bool = True) -> None:
    # Without unpatch_all some clone only went away: the model may be in use by another.
    if unpatch_all:
        for module, name, _ in passed_over(patcher.model):
            set_patches(module, name, ())


def passed_over(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Module, name and key of each parameter that the host leaves alone when it loads ``model``."""
    for path, module in model.named_modules():
        names: list[str] = []
        if isinstance(module, PackedLayer):
            names = ["weight"]
        elif any(True for child in module.children() for _ in child.parameters()):
            names = [name for name, _ in module.named_parameters(recurse=False)]
        for name in names:
            yield module, name, f"{path}.{name}"


def changed_at_use(network: nn.Module) -> dict[str, Tensor]:
    """Key -> patched value, in the stored dtype, of each parameter of a loaded network that is patched at use."""
    return {
        key: patched(module, name, weight, weight.dtype).detach()
        for module, name, key in passed_over(network)
        if has_patches(module, name)
        for weight in (getattr(module, name),)
    }


def _functions(patcher: Any, key: str, copy: bool) -> tuple[Patch, ...]:
    if key in patcher.backup:  # a host that does patch it keeps the original there
        return ()
    patches = tuple(patcher.patches.get(key, ()))
    own = (partial(_calculate, patches, key, copy),) if patches else ()
    return own + tuple(patcher.weight_wrapper_patches.get(key, ()))


def _calculate(patches: tuple[Any, ...], key: str, copy: bool, weight: Tensor) -> Tensor:
    given = weight.clone() if copy else weight
    return comfy.lora.calculate_weight(patches, given, key, intermediate_dtype=torch.float32)
