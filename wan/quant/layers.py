"""Layers that keep their weight packed and unpack it each time it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..ops import current, has_patches, look_up, patched
from .formats import Quant, check, dequantise, packed_shape


class PackedLayer(nn.Module):
    """A weight as it is stored and, where the format has one, its float32 scale.

    Both are buffers without values until a state dict brings them.
    """

    weight: Tensor
    weight_scale: Tensor | None

    def __init__(self, quant: Quant, device: torch.device | None = None) -> None:
        super().__init__()
        self.quant = quant
        shape, dtype = packed_shape(quant)
        self.register_buffer("weight", torch.empty(shape, dtype=dtype, device=device))
        scale = quant.scale_shape
        self.register_buffer(
            "weight_scale",
            None if scale is None else torch.empty(scale, dtype=torch.float32, device=device),
        )

    def numbers(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The whole weight on ``device``: unpacked, patched, in ``dtype``."""
        wide = torch.float32 if has_patches(self, "weight") else dtype
        weight = dequantise(self.weight.to(device), self.weight_scale, self.quant, wide)
        return patched(self, "weight", weight, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLayer:
        """Follow ``to(device)``; ``to(dtype)`` is for the bias alone, packed numbers would suffer."""

        def keep_packed(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            packed = not isinstance(tensor, nn.Parameter) and moved.dtype != tensor.dtype
            return tensor.to(moved.device) if packed else moved

        super()._apply(keep_packed, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        """Format and logical shape."""
        return f"{self.quant.format}, {self.quant.shape}"


class QuantLinear(PackedLayer):
    """``nn.Linear`` over a packed weight of shape (out, in).

    Args:
        quant: how the weight is packed.
        bias: (out,) or None; it is used as it is, not copied.
        device: of the weight.
    """

    def __init__(
        self, quant: Quant, bias: nn.Parameter | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__(quant, device)
        self.out_features, self.in_features = quant.shape
        self.bias = bias

    def plain(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The whole weight and the bias as an input like ``x`` needs them."""
        bias = None if self.bias is None else current(self, "bias", x)
        return self.numbers(x.device, x.dtype), bias

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in)`` to ``(..., out)`` in the input's dtype, on its device."""
        return functional.linear(input, *self.plain(input))


class QuantEmbedding(PackedLayer):
    """``nn.Embedding`` over a packed table of shape (ids, dim).

    Args:
        quant: how the table is packed.
        row_dtype: of the rows that come out.
        device: of the table.
    """

    def __init__(
        self,
        quant: Quant,
        row_dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(quant, device)
        self.num_embeddings, self.embedding_dim = quant.shape
        self.row_dtype = row_dtype

    def forward(self, input: Tensor) -> Tensor:
        """Rows (..., dim) of the ids ``input`` (...)."""
        # A patch sees whole weights; and a table smaller than the request is cheaper to unpack once.
        if has_patches(self, "weight") or input.numel() > self.num_embeddings:
            return look_up(self.numbers(self.weight.device, self.row_dtype), input)
        ids, scale = input.flatten(), self.weight_scale
        if scale is not None and scale.numel() > 1:
            scale = scale[ids]
        quant = replace(
            self.quant,
            shape=(len(ids), self.embedding_dim),
            scale_shape=None if scale is None else tuple(scale.shape),
        )
        rows = dequantise(look_up(self.weight, ids), scale, quant, self.row_dtype)
        return rows.view(*input.shape, self.embedding_dim)


def layer_shape(layer: nn.Module) -> tuple[int, int] | None:
    """(out, in) of a linear layer, (ids, dim) of an embedding, told by their attributes; else None."""
    for rows, columns in (("out_features", "in_features"), ("num_embeddings", "embedding_dim")):
        if hasattr(layer, rows) and hasattr(layer, columns):
            return getattr(layer, rows), getattr(layer, columns)
    return None


def packed_layer(layer: nn.Module, quant: Quant) -> PackedLayer:
    """The packed counterpart of a linear layer or an embedding, on the device of its weight.

    It shares the bias of ``layer``; an embedding's rows keep the dtype of ``layer``'s.
    """
    weight: Tensor | None = getattr(layer, "weight", None)
    device = None if weight is None else weight.device
    if hasattr(layer, "out_features"):
        return QuantLinear(quant, getattr(layer, "bias", None), device)
    return QuantEmbedding(quant, torch.float32 if weight is None else weight.dtype, device)


def replace_layers(
    module: nn.Module,
    quants: Mapping[str, Quant],
    make: Callable[[nn.Module, Quant], nn.Module] = packed_layer,
) -> None:
    """Swap linear layers and embeddings of ``module`` for packed ones; nothing is read or unpacked.

    Works on the meta device. Afterwards ``load_state_dict(..., assign=True, strict=True)`` takes
    ``<layer>.weight`` packed, and ``<layer>.weight_scale`` where there is a scale.

    Args:
        module: the network, changed in place.
        quants: layer, a key without its ``.weight`` -> how its weight is packed.
        make: ``(layer, quant) -> packed layer``; a host may bring its own.

    Raises:
        ValueError: no such layer, one of another kind or shape, or a packing that is not read;
            ``module`` is then as it was.
    """
    layers = {name: _find(module, name, quant) for name, quant in quants.items()}
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, make(layer, quants[name]))


def _find(module: nn.Module, name: str, quant: Quant) -> nn.Module:
    try:
        layer = module.get_submodule(name)
    except AttributeError:
        raise ValueError(
            f"{name} is packed as {quant.format} but the network has no such layer; "
            "choose a file of this model"
        ) from None
    shape = layer_shape(layer)
    if shape is None:
        raise ValueError(
            f"{name} is packed as {quant.format} but only linear layers and embeddings may be; "
            "use a file that keeps it in BF16, F16 or F32"
        )
    if shape != quant.shape:
        raise ValueError(
            f"{name} is packed with shape {quant.shape} but the network needs {shape}; "
            "choose a file of this model"
        )
    try:
        check(quant)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return layer
