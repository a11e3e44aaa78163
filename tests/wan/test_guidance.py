"""Classifier-free guidance."""

from __future__ import annotations

import math

import pytest
import torch
from wanexperts.wan.guidance import Guidance, cfg, needs_uncond, parse_guidance


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


def test_a_curve_is_linear_between_its_points_and_constant_outside() -> None:
    curve = Guidance(((0.9, 3.5), (0.5, 1.5), (0.25, 4.0)))
    told = [curve.at(sigma) for sigma in (1.0, 0.9, 0.7, 0.5, 0.375, 0.25, 0.0)]
    assert told == pytest.approx([3.5, 3.5, 2.5, 1.5, 2.75, 4.0, 4.0], abs=1e-12)


def test_a_constant_is_exact_everywhere() -> None:
    assert {Guidance.constant(3.5).at(sigma) for sigma in (0.0, 0.3, 1.0)} == {3.5}
    assert Guidance.constant(3.5).is_constant
    assert Guidance(((1.0, 2.0), (0.5, 2.0))).is_constant
    assert not Guidance(((1.0, 2.0), (0.5, 1.0))).is_constant


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("4", ((1.0, 4.0),)),
        (" 3.5 ", ((1.0, 3.5),)),
        ("1:4, 0.9:3.5,0.5 : 1", ((1.0, 4.0), (0.9, 3.5), (0.5, 1.0))),
        ("0.5:1, 1:4", ((1.0, 4.0), (0.5, 1.0))),
    ],
)
def test_what_is_written_is_read(text: str, points: tuple[tuple[float, float], ...]) -> None:
    curve = parse_guidance(text)
    assert curve.points == points
    assert parse_guidance(str(curve)) == curve


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "guidance '' is neither a number nor a curve; write 4, or pairs"),
        ("four", "is neither a number nor a curve"),
        ("1:4, 3", "is neither a number nor a curve"),
        ("1:4:2", "is neither a number nor a curve"),
        ("1:4,", "is neither a number nor a curve"),
        ("nan", "guidance scale=nan is not finite"),
        ("1:inf", "guidance scale=inf is not finite"),
        ("900:4, 0.5:1", r"guidance point 900:4 is not at a noise level in \[0, 1\]"),
        ("nan:4", "is not at a noise level"),
        ("0.5:4, 0.5:1", "guidance points 0.5:4, 0.5:1 do not descend in sigma; give each"),
    ],
)
def test_bad_guidance_is_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_guidance(text)
    assert "\n" not in str(caught.value)


def test_a_curve_without_points_is_refused() -> None:
    with pytest.raises(ValueError, match="without points has no scale"):
        Guidance(())
