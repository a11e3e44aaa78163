"""The seam where a host replaces weighted layers by its casting, streaming or quantised ones.

ComfyUI's ``comfy.ops.manual_cast`` and ``disable_weight_init`` classes satisfy :class:`Ops` as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


Patch = Callable[[Tensor], Tensor]
"""A change of one weight, such as a LoRA at some strength: float32 in, float32 out."""

_PATCHES = "_weight_patches"


def set_patches(module: nn.Module, name: str, patches: Sequence[Patch]) -> None:
    """Let ``patches`` change the parameter ``name`` of ``module`` whenever it is used; () ends that.

    The stored parameter stays as it is, so taking a patch away is exact.
    """
    held: dict[str, tuple[Patch, ...]] = {**getattr(module, _PATCHES, {})}
    held.pop(name, None)
    if patches:
        held[name] = tuple(patches)
    setattr(module, _PATCHES, held)


def has_patches(module: nn.Module, name: str) -> bool:
    """Whether anything changes the parameter ``name`` of ``module`` at use."""
    return name in getattr(module, _PATCHES, {})


def patched(module: nn.Module, name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` in ``dtype``, after the patches of the parameter ``name``, which see float32."""
    for patch in getattr(module, _PATCHES, {}).get(name, ()):
        weight = patch(weight.float())
    return weight.to(dtype)


def current(module: nn.Module, name: str, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A parameter as the maths needs it: on ``x``'s device, patched, in ``dtype`` (default ``x``'s)."""
    weight: Tensor = getattr(module, name)
    return patched(module, name, weight.to(x.device), dtype or x.dtype)


def widest_float(device: torch.device | None) -> torch.dtype:
    """float64, or float32 on the one backend (Apple's) that has nothing wider."""
    return torch.float32 if device is not None and device.type == "mps" else torch.float64


def _bias(module: nn.Module, x: Tensor) -> Tensor | None:
    return None if module.bias is None else current(module, "bias", x)


class Linear(nn.Linear):
    """``nn.Linear`` whose weights follow the dtype of the input."""

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as an input like ``x`` needs them."""
        return current(self, "weight", x), _bias(self, x)

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)`` in the input's dtype."""
        return functional.linear(input, *self.plain(input))


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` whose weights follow the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, H, W)`` in the input's dtype."""
        weight, bias = current(self, "weight", input), _bias(self, input)
        out: Tensor = self._conv_forward(input, weight, bias)
        return out


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` whose weights follow the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(B, C, T, H, W)`` in the input's dtype."""
        weight, bias = current(self, "weight", input), _bias(self, input)
        out: Tensor = self._conv_forward(input, weight, bias)
        return out


class LayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` whose weights follow the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last axes in the input's dtype."""
        weight, bias = current(self, "weight", input), _bias(self, input)
        return functional.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


FUSED_RMS_NORM = ("cuda", "mps")
"""Devices on which PyTorch's RMS norm is one kernel."""


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` whose weights follow the dtype of the input."""

    @staticmethod
    def is_fused(x: Tensor) -> bool:
        """Whether PyTorch has one kernel for it where ``x`` is; else it makes six passes in float32."""
        return x.device.type in FUSED_RMS_NORM

    def scale(self, x: Tensor) -> Tensor:
        """What each row of ``x (..., D)`` is multiplied by beside the weight: ``(..., 1)`` float32."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return torch.rsqrt(length.square() / x.shape[-1] + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axes in the input's dtype, statistics in float32."""
        weight = current(self, "weight", x)
        if self.is_fused(x):
            return functional.rms_norm(x, self.normalized_shape, weight, self.eps)
        scale = self.scale(x)
        if torch.is_grad_enabled():
            return (x * scale * weight).to(x.dtype)
        return torch.mul(x, scale, out=torch.empty_like(x)).mul_(weight)


def look_up(table: Tensor, ids: Tensor) -> Tensor:
    """Rows (..., dim) of ``table`` (n, dim) as they are stored, whatever their dtype."""
    if table.dtype.itemsize > 1:
        return functional.embedding(ids, table)
    # Not every backend indexes float8; bytes it does.
    return table.view(torch.uint8)[ids].view(table.dtype)


class Embedding(nn.Embedding):
    """``nn.Embedding`` whose rows come in the dtype it was built for, however they are stored.

    Built without a dtype, rows keep the stored one, or float32 where that is for storage only.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, device=device, dtype=dtype)
        self.row_dtype = dtype

    def reset_parameters(self) -> None:
        """Draw values, but none for a weight without memory: torch imports its compiler to do so."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Rows (..., dim) of the ids ``input`` (...)."""
        stored = self.weight.dtype
        dtype = self.row_dtype or (stored if stored.itemsize > 1 else torch.float32)
        if has_patches(self, "weight"):
            return look_up(patched(self, "weight", self.weight, dtype), input)
        return look_up(self.weight, input).to(dtype)


class TorchOps:
    """Plain layers for the library alone: the input's dtype is the dtype of the computation.

    ComfyUI's casting layers follow the same rule, so a module behaves the same under both.
    """

    Linear = Linear
    Conv2d = Conv2d
    Conv3d = Conv3d
    LayerNorm = LayerNorm
    RMSNorm = RMSNorm
    Embedding = Embedding
