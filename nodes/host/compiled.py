"""MODELs whose blocks run compiled: one graph a branch for both experts, however they are loaded and patched."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...wan.compiled import can_compile, through
from ...wan.pipeline.kernels import COMPILED
from .model import HostTransformer

KEY = "torch.compile"
"""Of the wrapper that ComfyUI's compiling node hangs on a MODEL, and of ours, which takes its place."""
THROUGH = through()
"""What branches go through."""


def compiled(name: str, model: Any) -> Any:
    """A clone of the MODEL at the input ``name`` that runs compiled; the MODEL itself where nothing can be.

    It takes the place of ComfyUI's compiling of the whole network.

    Raises:
        ValueError: the MODEL is of another loader.
    """
    network = model.model.diffusion_model
    if not isinstance(network, HostTransformer):
        raise ValueError(
            f"{name} is a {type(network).__name__} of another loader, which has no blocks to compile "
            "here; load it with Load Wan Experts, or compile it with TorchCompileModel"
        )
    if not can_compile(model.load_device.type):
        return model
    clone = model.clone()
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _run)
    return clone


def compiled_as(model: Any) -> str:
    """How a MODEL is compiled, in words; "" where it is not."""
    found = model.get_wrappers(WrappersMP.APPLY_MODEL, KEY)
    return (COMPILED if _run in found else "compiled network") if found else ""


def _run(executor: Any, *given: Any, **options: Any) -> Tensor:
    with executor.class_obj.diffusion_model.going(THROUGH):
        out: Tensor = executor(*given, **options)
        return out
