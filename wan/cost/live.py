"""Peak memory of a computation, traced on tensors without memory.

The transformer and the solvers are run as they are on the meta device, where nothing is computed and
nothing is stored: what is alive at every moment is known at any size within milliseconds, and the
count follows the code when the code changes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

META = torch.device("meta")


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, ``peak`` is the most bytes that results of operations held together."""

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """``held`` are tensors that are there from the start and count as long as they live."""
        super().__init__()  # type: ignore[no-untyped-call]
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
        given = {
            id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)
        }
        for value in tree_iter(out):
            if isinstance(value, Tensor) and id(value.untyped_storage()) not in given:
                self._add(value)
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
