"""The seam where a host replaces weighted layers by its casting, streaming or quantised ones.

ComfyUI's ``comfy.ops.manual_cast`` and ``disable_weight_init`` classes satisfy :class:`Ops` as they are.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Ops(Protocol):
    """Factory of weighted layers; each attribute has the constructor of its ``torch.nn`` namesake."""

    Linear: Any
    Conv2d: Any
    Conv3d: Any
    LayerNorm: Any
    RMSNorm: Any
    Embedding: Any


class TorchOps:
    """Plain ``torch.nn`` layers: the default when no host is present."""

    Linear = nn.Linear
    Conv2d = nn.Conv2d
    Conv3d = nn.Conv3d
    LayerNorm = nn.LayerNorm
    RMSNorm = nn.RMSNorm
    Embedding = nn.Embedding


def cast_like(parameter: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A bare parameter as the maths at hand needs it: on ``x``'s device, in ``dtype`` (default ``x``'s).

    A no-op in the library alone; a host may keep the parameter on its offload device.
    """
    return parameter.to(device=x.device, dtype=dtype or x.dtype)
