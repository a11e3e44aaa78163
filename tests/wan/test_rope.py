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
    assert table.shape == (2, GRID.tokens, 64)
    token = 2 * 20 + 3 * 5 + 4  # frame 2, row 3, column 4
    for pair, angle in [
        (0, 2.0),
        (1, 2.0 * 10000 ** (-2 / 44)),
        (22, 3.0),
        (23, 3.0 * 10000 ** (-2 / 42)),
        (43, 4.0),
    ]:
        assert math.isclose(table[0, token, pair].item(), math.cos(angle), abs_tol=1e-6)
        assert math.isclose(table[1, token, pair].item(), math.sin(angle), abs_tol=1e-6)


def test_rotation_keeps_norms_and_pairs_are_interleaved():
    torch.manual_seed(0)
    x = torch.randn(2, GRID.tokens, 3, 128)
    rotated = apply_rope(x, rope_table(GRID, 128))
    assert rotated.shape == x.shape
    pairs = x.view(*x.shape[:-1], 64, 2).norm(dim=-1)
    assert torch.allclose(rotated.view(*x.shape[:-1], 64, 2).norm(dim=-1), pairs, atol=1e-5)
    assert torch.equal(rotated[:, 0], x[:, 0])  # the first token is at position 0 on every axis


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
