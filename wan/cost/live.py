"""Peak memory of a computation, traced on tensors without memory.

The transformer and the solvers are run as they are on the meta device, where nothing is computed and
nothing is stored: what is alive at every moment is known at any size within milliseconds, and the
count follows the code when the code changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

META = torch.device("meta")


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, ``peak`` is the most bytes that results of operations held together."""

    def __init__(self, held: Iterable[Tensor] = (), *, device: str = "meta") -> None:
        """``held`` are tensors that are there from the start and count as long as they live.

        ``device`` is the kind of device that is foretold: for ``cpu`` the copies count that its
        operations make for themselves.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device
        self.now: int = 0
        self.peak: int = 0
        self._known: set[int] = set()
        for tensor in held:
            self._add(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation and count what it returns; views share what they look at."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = {id(tensor.untyped_storage()) for tensor in _tensors_in((args, kwargs))}
        written = []
        for value in _tensors_in(out):
            if id(value.untyped_storage()) in given:
                written.append(value)
            else:
                self._add(value)
        if self._device == "cpu" and torch.Tag.pointwise in func.tags:
            self.peak = max(self.peak, self.now + _copies(_tensors_in(args), written))
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _copies(read: list[Tensor], written: list[Tensor]) -> int:
    """Bytes of what an elementwise operation on a CPU converts before and after it, as whole tensors.

    Where dtypes differ it works in one that holds them all. A GPU converts while it reads and writes.
    """
    dtypes = [tensor.dtype for tensor in read if tensor.dim()]
    if len(set(dtypes)) < 2:
        return 0
    common = reduce(torch.promote_types, dtypes)
    other = [tensor for tensor in (*read, *written) if tensor.dim() and tensor.dtype != common]
    return sum(tensor.numel() for tensor in other) * common.itemsize


def _tensors_in(tree: Any) -> list[Tensor]:
    return [value for value in tree_iter(tree) if isinstance(value, Tensor)]
