"""Weights that lie in their file, under a host that pins what it streams."""

from __future__ import annotations

from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
from torch import nn

from . import compat

HELD = "wan_mapped"
"""Attribute of the model: key -> (the copy that is pinned, the mapped weight)."""


class MappedPatcher(comfy.model_patcher.ModelPatcher):
    """A weight leaves its file for as long as it is pinned.

    Pinning locks whole pages and makes them copies of the file's. Neighbours in a file share pages,
    which cannot be locked twice: the host would pin every other weight and warn about the rest.
    Versions before 0.3.69 pin nothing and never call these.
    """

    def pin_weight_to_device(self, key: str) -> None:
        """Pin a copy; where that fails the mapped weight stays."""
        weight = comfy.utils.get_attr(self.model, key)
        mapped = isinstance(weight, nn.Parameter) and mm.is_device_cpu(weight.device)
        if mm.MAX_PINNED_MEMORY <= 0 or key in self.pinned or not mapped:
            return
        copy = nn.Parameter(weight.detach().clone(), requires_grad=False)
        comfy.utils.set_attr(self.model, key, copy)
        self._held()[key] = copy, weight
        super().pin_weight_to_device(key)
        if key not in self.pinned:
            self._put_back(key)

    def unpin_weight(self, key: str) -> None:
        """Back to the file."""
        super().unpin_weight(key)
        self._put_back(key)

    def _held(self) -> dict[str, Any]:
        if not hasattr(self.model, HELD):
            setattr(self.model, HELD, {})
        held: dict[str, Any] = getattr(self.model, HELD)
        return held

    def _put_back(self, key: str) -> None:
        copy, weight = self._held().pop(key, (None, None))
        # Something else may have been put there since, such as a patched weight.
        if copy is not None and comfy.utils.get_attr(self.model, key) is copy:
            comfy.utils.set_attr(self.model, key, weight)


def settle(patcher: Any, *, packed: bool) -> Any:
    """The patcher of a model whose weights were mapped after ``patcher`` had been made.

    ``packed`` says that some of them cannot be paged in on demand, as newer versions do.
    """
    if compat.is_dynamic(patcher) and not packed:
        patcher.size = 0  # it may have measured the model empty
        return patcher
    made = MappedPatcher(patcher.model, patcher.load_device, patcher.offload_device)
    for name in ("object_patches", "force_cast_weights", "hook_mode", "is_clip"):
        setattr(made, name, getattr(patcher, name))
    return made
