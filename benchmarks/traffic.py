"""Bytes that operations touch beside matrix products and attention: what fusing passes can save."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

PRODUCTS = {"addmm", "mm", "bmm", "baddbmm", "convolution", "_linear_pointwise"}
ATTENTION = "attention"
FREE = {"empty", "empty_like", "new_empty", "detach", "_unsafe_view"}


class Traffic(TorchDispatchMode):
    """While active, ``bytes`` adds up what each operation reads and writes, ``by`` names them.

    Views, allocations, matrix products and attention count nothing. A tensor that is overwritten is
    read and written where its old values matter, else written.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.by: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.__name__.split(".")[0]
        if func.is_view or name in PRODUCTS | FREE or ATTENTION in name:
            return out
        given = {key: value for key, value in kwargs.items() if key != "out"}
        read = tree_iter((args[1:] if name == "copy_" else args, given))
        self.count(func.__name__, read, tree_iter(out))
        return out

    def count(self, name: str, *groups: Any) -> None:
        """Add all tensors of ``groups``."""
        tensors = [value for group in groups for value in group if isinstance(value, Tensor)]
        touched = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.bytes += touched
        self.by[name] += touched


class FusedNorm(TorchFunctionMode):
    """RMS norm as on a GPU, where it is one kernel; PyTorch makes six passes of it elsewhere.

    Its result has no values.
    """

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self._traffic = traffic

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count a call of RMS norm as one operation."""
        if func not in (torch.rms_norm, functional.rms_norm):
            return func(*args, **(kwargs or {}))
        out = torch.empty_like(args[0])
        self._traffic.count("rms_norm", [args[0], out])
        return out
