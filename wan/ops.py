"""The seam where a host replaces weighted layers by its casting, streaming or quantised ones.

ComfyUI's ``comfy.ops.manual_cast`` and ``disable_weight_init`` classes satisfy :class:`Ops` as they are.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional


class Ops(Protocol):
    """Factory of weighted layers; each attribute has the constructor of its ``torch.nn`` namesake."""

    Linear: Any
    Conv2d: Any
    Conv3d: Any
    LayerNorm: Any
    RMSNorm: Any
    Embedding: Any


def cast_like(parameter: Tensor, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A bare parameter as the maths at hand needs it: on ``x``'s device, in ``dtype`` (default ``x``'s).

    A no-op when both already agree; a host may keep the parameter on its offload device.
    """
    return parameter.to(device=x.device, dtype=dtype or x.dtype)


def widest_float(device: torch.device | None) -> torch.dtype:
    """float64, or float32 on the one backend (Apple's) that has nothing wider."""
    return torch.float32 if device is not None and device.type == "mps" else torch.float64


def _follow(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


class Linear(nn.Linear):
    """``nn.Linear`` whose weights follow the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)`` in the input's dtype."""
        return functional.linear(input, self.weight.to(input.dtype), _follow(self.bias, input))


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` whose weights follow the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)`` in the input's dtype."""
        weight, bias = self.weight.to(input.dtype), _follow(self.bias, input)
        out: Tensor = self._conv_forward(input, weight, bias)
        return out


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` whose weights follow the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, T, H, W)`` in the input's dtype."""
        weight, bias = self.weight.to(input.dtype), _follow(self.bias, input)
        out: Tensor = self._conv_forward(input, weight, bias)
        return out


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` whose weights follow the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axes in the input's dtype."""
        weight, bias = _follow(self.weight, input), _follow(self.bias, input)
        return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` whose weights follow the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axes in the input's dtype."""
        return functional.rms_norm(x, self.normalized_shape, _follow(self.weight, x), self.eps)


class TorchOps:
    """Plain layers for the library alone: the input's dtype is the dtype of the computation.

    ComfyUI's casting layers follow the same rule, so a module behaves the same under both.
    """

    Linear = Linear
    Conv2d = Conv2d
    Conv3d = Conv3d
    LayerNorm = LayerNorm
    RMSNorm = RMSNorm
    Embedding = nn.Embedding
