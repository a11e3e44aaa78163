"""An end asked for by the user takes effect inside a step, not only after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as mm
import torch
from torch import Tensor

ATTENTION = "optimized_attention_override"
"""Where ComfyUI's attention looks for a function to call in its place, in ``transformer_options``."""


def check_interrupted() -> None:
    """Raise ComfyUI's exception if the user asked for an end; costs nothing in compiled code."""
    # A graph would hold the answer of the moment it was traced.
    if not torch.compiler.is_compiling():
        mm.throw_exception_if_processing_interrupted()


def interruptible(override: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """ComfyUI's attention with a look at the interrupt before, through ``override`` if there is one."""
    if override is None:
        return _attend

    def attend(func: Callable[..., Tensor], *args: Any, **kw: Any) -> Tensor:
        check_interrupted()
        return override(func, *args, **kw)

    return attend


def _attend(func: Callable[..., Tensor], *args: Any, **kw: Any) -> Tensor:
    # One function for all runs: compiled models are compiled for what they were given.
    check_interrupted()
    return func(*args, **kw)


def goes_through(override: Callable[..., Tensor] | None) -> bool:
    """Whether ``override`` leaves attention to ComfyUI's own backend."""
    return override is None or override is _attend
