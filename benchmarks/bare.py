"""The convolutions of a computation alone, for what everything else costs beside them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Convolutions(TorchDispatchMode):
    """Counts the convolutions of a block of code by shape and memory order."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            x, weight, bias, *rest = args
            orders = (x.stride(1) == 1, weight.stride(1) == 1)
            self.seen[(*orders, x.shape, weight.shape, bias is None, repr(rest))] += 1
            self.rest = {**getattr(self, "rest", {}), repr(rest): rest}
        return func(*args, **(kwargs or {}))

    def seconds(self, dtype: torch.dtype) -> float:
        """Time of the same convolutions alone."""
        total = 0.0
        for (x_last, w_last, x_shape, w_shape, no_bias, rest), count in self.seen.items():
            x, weight = torch.randn(x_shape, dtype=dtype), torch.randn(w_shape, dtype=dtype)
            x = x.contiguous(memory_format=torch.channels_last) if x_last else x
            if w_last and weight.ndim == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            bias = None if no_bias else torch.zeros(w_shape[0], dtype=dtype)
            best = min(
                processor(lambda: torch.ops.aten.convolution(x, weight, bias, *self.rest[rest]))  # noqa: B023
                for _ in range(3)
            )
            total += best * count
        return total


def processor(work: Callable[[], object]) -> float:
    """Seconds that this thread worked; waiting for a processor does not count."""
    start = time.thread_time()
    work()
    return time.thread_time() - start
