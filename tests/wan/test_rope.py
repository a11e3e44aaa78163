"""Rotary position embedding by its mathematics."""

from __future__ import annotations

import math

import torch
from wanexperts.wan.rope import apply_rope, axis_dims, rope_table
from wanexperts.wan.shapes import TokenGrid

GRID = TokenGrid(3, 4, 5)


def test_a_head_of_128_is_split_44_42_42():
    assert axis_dims(128) == (44, 42, 42)


def test_table_holds_the_angle_of_each_axis():
    table = rope_table(GRID, 128)
    assert table.shape == (GRID.tokens, 2, 64)
    token = 2 * 20 + 3 * 5 + 4  # frame 2, row 3, column 4
    for pair, angle in [
        (0, 2.0),
        (1, 2.0 * 10000 ** (-2 / 44)),
        (22, 3.0),
        (23, 3.0 * 10000 ** (-2 / 42)),
        (43, 4.0),
    ]:
        assert math.isclose(table[token, 0, pair].item(), math.cos(angle), abs_tol=1e-6)
        assert math.isclose(table[token, 1, pair].item(), math.sin(angle), abs_tol=1e-6)


def test_pairs_are_interleaved_and_turn_by_their_angle_into_halves():
    torch.manual_seed(0)
    x = torch.randn(2, GRID.tokens, 3, 128)
    rotated = apply_rope(x, rope_table(GRID, 128))
    assert rotated.shape == x.shape
    turned = torch.complex(*rope_table(GRID, 128)[:, None].unbind(-2))
    wanted = torch.view_as_complex(x.unflatten(-1, (64, 2)).contiguous()) * turned
    assert torch.allclose(rotated, torch.cat([wanted.real, wanted.imag], dim=-1), atol=1e-6)
    out = torch.empty_like(x)
    assert torch.equal(apply_rope(x, rope_table(GRID, 128), out), rotated)
    assert torch.equal(out, rotated)


def test_scores_depend_on_relative_position_only():
    torch.manual_seed(0)
    q, k = torch.randn(128), torch.randn(128)
    grid = TokenGrid(4, 6, 6)
    table = rope_table(grid, 128)
    tokens = torch.arange(grid.tokens).view(*grid)
    turned_q = apply_rope(q.expand(1, grid.tokens, 1, 128), table)[0, :, 0]
    turned_k = apply_rope(k.expand(1, grid.tokens, 1, 128), table)[0, :, 0]

    def score(a, b):
        return (turned_q[tokens[a]] @ turned_k[tokens[b]]).item()

    assert math.isclose(score((0, 1, 2), (1, 3, 2)), score((2, 2, 4), (3, 4, 4)), abs_tol=1e-3)
    assert not math.isclose(score((0, 1, 2), (1, 3, 2)), score((0, 1, 2), (1, 2, 2)), abs_tol=1e-3)


def test_dtype_in_is_dtype_out():
    x = torch.randn(1, GRID.tokens, 1, 128).bfloat16()
    assert apply_rope(x, rope_table(GRID, 128)).dtype == torch.bfloat16
