"""What a loaded network holds, and how far its output is from another's."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from wanexperts.tests.helpers import relative
from wanexperts.wan.quant import PackedLayer

CPU = torch.device("cpu")


def assert_holds(module: nn.Module, meaning: Mapping[str, Tensor]) -> None:
    """Every weight of a loaded network is, bit for bit, what its file stands for; there is no other."""
    packed = {f"{n}.weight": m for n, m in module.named_modules() if isinstance(m, PackedLayer)}
    seen = set()
    for key, stored in module.state_dict().items():
        if not key.endswith(".weight_scale"):
            layer = packed.get(key)
            got = layer.numbers(CPU, torch.float32) if layer else stored.float()
            assert torch.equal(got, meaning[key]), key
            seen.add(key)
    assert seen == meaning.keys()


def own_memory(module: nn.Module) -> nn.Module:
    """Copies instead of mapped weights: how the sums of a product are split may hang on the alignment."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
    return module


def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """A network of plain weights, which are not copied."""
    module.load_state_dict(weights, assign=True)
    return module.eval().requires_grad_(False)


def difference(network: nn.Module, other: nn.Module, run: Callable[[nn.Module], Tensor]) -> float:
    """Largest difference of the outputs of two networks over the largest value."""
    wanted = run(other)
    assert wanted.abs().max() > 0.01
    return relative(run(network), wanted)
