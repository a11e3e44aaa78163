"""MODELs whose blocks run compiled: one graph a branch for both experts, however they are loaded and patched."""

from __future__ import annotations

from typing import Any

from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...wan.compiled import can_compile, through
from .model import HostTransformer
from .run_key import COMPILED

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
    clone.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, COMPILED)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, COMPILED, _run)
    return clone


def _run(executor: Any, *given: Any, **options: Any) -> Tensor:
    with executor.class_obj.diffusion_model.going(THROUGH):
        out: Tensor = executor(*given, **options)
        return out
