"""Classifier-free guidance."""

from __future__ import annotations

import math

import pytest
import torch
from wanexperts.wan.guidance import cfg, needs_uncond


def _pair(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cond, uncond = torch.randn(2, 1, 4, 3, 2, 2, generator=generator).to(dtype)
    return cond, uncond


def test_formula() -> None:
    cond, uncond = _pair(torch.float32)
    assert torch.allclose(cfg(cond, uncond, 3.5), 3.5 * cond - 2.5 * uncond, atol=1e-6)


def test_scale_zero_is_the_negative_prompt_and_one_the_prompt() -> None:
    cond, uncond = _pair(torch.float32)
    assert torch.equal(cfg(cond, uncond, 0.0), uncond)
    assert torch.allclose(cfg(cond, uncond, 1.0), cond, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_computes_in_float32(dtype: torch.dtype) -> None:
    cond, uncond = _pair(dtype)
    guided = cfg(cond, uncond, 4.0)
    assert guided.dtype == torch.float32
    assert torch.equal(guided, cfg(cond.float(), uncond.float(), 4.0))


def test_inputs_stay_as_they_were() -> None:
    cond, uncond = _pair(torch.float32)
    before = cond.clone(), uncond.clone()
    cfg(cond, uncond, 4.0)
    assert torch.equal(cond, before[0])
    assert torch.equal(uncond, before[1])


def test_the_second_forward_is_saved_only_at_scale_one() -> None:
    assert not needs_uncond(1.0)
    assert not needs_uncond(1 + 1e-7)
    assert needs_uncond(1.001)
    assert needs_uncond(0.0)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_scale_must_be_finite(scale: float) -> None:
    cond, uncond = _pair(torch.float32)
    with pytest.raises(ValueError, match=r"guidance scale=.* is not finite; use 1"):
        cfg(cond, uncond, scale)
    with pytest.raises(ValueError, match="is not finite"):
        needs_uncond(scale)


def test_shapes_must_agree() -> None:
    cond, uncond = _pair(torch.float32)
    with pytest.raises(ValueError, match=r"cannot be guided; give both prompts the same batch"):
        cfg(torch.cat([cond, cond]), uncond, 3.0)
