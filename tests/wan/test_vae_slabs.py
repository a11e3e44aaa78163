"""A few rows at a time: the same numbers as the whole frame."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d
from wanexperts.tests.helpers import random_state
from wanexperts.wan.config import VAEConfig
from wanexperts.wan.vae import WanVAE, slabs
from wanexperts.wan.vae.slabs import Filter, conv_rows

TOLERANCE = 1e-5  # measured: 2.1e-6 float32 at dim 96, bit-equal in bfloat16


def few_rows(monkeypatch, elements: int) -> None:
    monkeypatch.setattr(slabs, "SLAB_ELEMENTS", {"cpu": elements})


@pytest.mark.parametrize("order", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1)], ids=str)
@pytest.mark.parametrize(("elements", "count"), [(1, 11), (2 * 7 * 5 * 4, 3), (10**6, 1)])
def test_rows_are_convolved_as_the_whole_is(monkeypatch, order, kernel, elements, count):
    few_rows(monkeypatch, elements)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 7, 11, 5, generator=generator).contiguous(memory_format=order)
    weight, bias = torch.randn(3, 7, *kernel, generator=generator), torch.ones(3)
    given = Filter(weight, bias, (kernel[0] // 2, kernel[1] // 2))
    runs = slabs.slabs(11, x[:, :, 0].numel(), x.device)
    assert [row for start, stop in runs for row in range(start, stop)] == [*range(11)]
    assert len(runs) == count
    found = conv_rows(given, lambda start, stop: x[:, :, start:stop], 11, runs)
    wanted = conv2d(x, weight, bias, padding=given.padding)
    assert found.is_contiguous(memory_format=order)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_stream_in_slabs_is_the_same_stream(monkeypatch, dtype):
    config = VAEConfig(dim=16)
    vae = WanVAE(config).eval().requires_grad_(False)
    vae.load_state_dict(random_state(vae, seed=0))
    vae.to(dtype)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 16, 3, 3, 5, generator=generator).to(dtype)
    video = (torch.rand(1, 3, 5, 32, 48, generator=generator) * 2 - 1).to(dtype)
    few_rows(monkeypatch, 1 << 40)
    wanted = vae.decode(latents), vae.encode(video)
    few_rows(monkeypatch, 1 << 11)
    found = vae.decode(latents), vae.encode(video)
    for ours, whole in zip(found, wanted, strict=True):
        assert (ours - whole).abs().max() <= (0 if dtype == torch.bfloat16 else TOLERANCE)
