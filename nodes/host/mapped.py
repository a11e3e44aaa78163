"""Weights that lie in their file, under a host that pins what it streams and fetches back what it loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from . import compat

HELD = "wan_mapped"
"""Attribute of the model: key -> (the copy that is pinned, the mapped weight)."""
FILED = "wan_filed"
"""Attribute of the model: key -> the weight as it lies in its file."""


class FromFile(TorchFunctionMode):
    """While active, a weight that is sent to the CPU comes from its file, not from where it is."""

    def __init__(self, filed: Sequence[tuple[Tensor, Tensor]]) -> None:
        """``filed``: loaded weights, each with what lies in the file."""
        super().__init__()
        # Told apart by ``id``, which no other tensor gets while the weight is held here.
        self._filed = {id(loaded): (loaded, file) for loaded, file in filed}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer ``weight.to("cpu", ...)``; everything else runs as it is."""
        # The keys first: most calls have nothing to do with weights.
        if func is torch.Tensor.to and id(args[0]) in self._filed:
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **(kwargs or {}))
            _, filed = self._filed[id(args[0])]
            if device == filed.device and dtype in (None, filed.dtype):
                return filed
        return func(*args, **(kwargs or {}))


class MappedPatcher(comfy.model_patcher.ModelPatcher):
    """Weights of a file are read from it, never written back to memory, and leave it only to be pinned.

    Unloading, ComfyUI would copy every weight from the device into memory of its own. The file still has
    those that nobody patched; of the others ComfyUI keeps what the file had.

    Pinning locks whole pages and makes them copies of the file's. Neighbours in a file share pages,
    which cannot be locked twice: the host would pin every other weight and warn about the rest.
    Versions before 0.3.69 pin nothing and never call these.
    """

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        """As every model's, from the file."""
        with FromFile(self._filed()):
            super().unpatch_model(device_to, unpatch_weights)

    def partially_unload(self, *given: Any, **options: Any) -> Any:
        """As every model's, from the file."""
        with FromFile(self._filed()):
            return super().partially_unload(*given, **options)

    def _filed(self) -> list[tuple[Tensor, Tensor]]:
        """Loaded weights that are as in the file, each with what lies there."""
        filed: Mapping[str, Tensor] = getattr(self.model, FILED, {})
        changed = {*self.backup, *self.hook_backup}
        loaded = {key: comfy.utils.get_attr(self.model, key) for key in filed if key not in changed}
        return [
            (weight, filed[key])
            for key, weight in loaded.items()
            if weight.device != filed[key].device
        ]

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


def settle(patcher: Any, *, packed: bool, mapped: bool) -> Any:
    """The patcher of a model whose weights were set after ``patcher`` had been made.

    Args:
        patcher: what ComfyUI made for the empty model.
        packed: some of them cannot be paged in on demand, as newer versions do.
        mapped: all of them lie in their file.
    """
    if compat.is_dynamic(patcher) and not packed:
        patcher.size = 0  # it may have measured the model empty
        return patcher
    made = MappedPatcher(patcher.model, patcher.load_device, patcher.offload_device)
    for name in ("object_patches", "force_cast_weights", "hook_mode", "is_clip"):
        setattr(made, name, getattr(patcher, name))
    if mapped:
        setattr(made.model, FILED, dict(_weights(made.model)))
    return made


def _weights(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Weights as they are now; the model's own tensors will say where they are later."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(key, tensor.data) for key, tensor in named]
