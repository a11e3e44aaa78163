"""Kernels of others are used only where they are asked for, installed and right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from wanexperts.tests.helpers import relative
from wanexperts.wan.attention import plain, sdpa
from wanexperts.wan.backends import BACKENDS, backend_error, open_backend

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_opened() -> Iterator[None]:
    open_backend.cache_clear()
    yield
    open_backend.cache_clear()


def fake(monkeypatch: pytest.MonkeyPatch, module: str, function: str, factor: float) -> list[int]:
    """A package whose kernel is right but for a factor; returns the number of keys of each call."""
    calls: list[int] = []

    def kernel(q: Tensor, k: Tensor, v: Tensor, tensor_layout: str = "NHD") -> Tensor:
        assert tensor_layout == "NHD"
        calls.append(k.shape[1])
        return (plain(q, k, v) * factor).unflatten(-1, q.shape[2:])

    made = ModuleType(module)
    setattr(made, function, kernel)
    monkeypatch.setitem(sys.modules, module, made)
    return calls


KERNELS = {"flash": ("flash_attn", "flash_attn_func"), "sage": ("sageattention", "sageattn")}


@pytest.mark.parametrize("name", KERNELS)
def test_a_right_kernel_is_used(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls = fake(monkeypatch, *KERNELS[name], 1.0)
    attention = open_backend(name, CPU, torch.bfloat16)
    assert calls == [320, 77]
    q, k, v = (torch.randn(1, n, 2, 16) for n in (9, 5, 5))
    assert relative(attention(q, k, v), plain(q, k, v)) < 1e-6
    assert calls[2:] == [5]
    bias = torch.randn(5)
    assert relative(attention(q, k, v, bias), plain(q, k, v, bias)) < 1e-5
    assert calls[2:] == [5]  # it takes no bias: PyTorch's does
    assert open_backend(name, CPU, torch.bfloat16) is attention  # looked at once


@pytest.mark.parametrize("factor", [1.1, float("nan")])
@pytest.mark.parametrize("name", KERNELS)
def test_a_wrong_kernel_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, factor: float
) -> None:
    fake(monkeypatch, *KERNELS[name], factor)
    with pytest.raises(ValueError, match=f"attention='{name}' is (10.0|nan)% off here.*use sdpa"):
        open_backend(name, CPU, torch.bfloat16)


def test_what_is_missing_or_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with pytest.raises(ValueError, match=r"attention='flash' needs a package .* use sdpa"):
        open_backend("flash", CPU, torch.bfloat16)
    broken = ModuleType("sageattention")
    broken.sageattn = lambda *_, **__: torch.zeros(1).view(2)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sageattention", broken)
    with pytest.raises(ValueError, match=r"attention='sage' does not run on cpu in .*; use sdpa"):
        open_backend("sage", CPU, torch.bfloat16)
    with pytest.raises(ValueError, match="attention='xformers' is unknown; use one of sdpa, cudnn"):
        open_backend("xformers", CPU, torch.float32)


def test_pytorch_is_the_default_and_right() -> None:
    assert open_backend(BACKENDS[0], CPU, torch.float32) is sdpa
    assert backend_error(sdpa, CPU, torch.float32) < 1e-5
    assert backend_error(sdpa, CPU, torch.bfloat16) < 0.01  # measured: 0.0024
