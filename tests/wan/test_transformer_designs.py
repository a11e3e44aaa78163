"""Keys and values in eight bits, and a hidden state that lies elsewhere: how much they hold, how far off they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wanexperts.tests.helpers import random_state, relative
from wanexperts.wan.attention import plain, sdpa
from wanexperts.wan.config import T2V_A14B, TransformerConfig
from wanexperts.wan.cost.live import META, LiveBytes
from wanexperts.wan.shapes import token_grid
from wanexperts.wan.transformer import DESIGNS, EXACT, Memory, WanTransformer
from wanexperts.wan.transformer.keys_values import RUN, Packed, PackedKeysValues, shared, spread

A14B = replace(T2V_A14B.transformer, num_layers=1)
SMALL = TransformerConfig(dim=384, ffn_dim=512, num_heads=3, num_layers=3, text_dim=48)
P480, P720 = (21, 60, 104), (21, 90, 160)
INT8 = DESIGNS["int8"]
HOST, BOTH = DESIGNS["host"], DESIGNS["int8+host"]


def small(dtype: torch.dtype = torch.float32, attention=sdpa) -> WanTransformer:
    model = WanTransformer(SMALL, attention=attention, dtype=dtype).eval().requires_grad_(False)
    model.load_state_dict(random_state(model, 1))
    return model


def inputs(dtype: torch.dtype = torch.float32, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 16, 3, 14, 20, generator=generator).to(dtype)  # 210 tokens
    context = torch.randn(batch, 512, SMALL.text_dim, generator=generator)
    return x, torch.tensor([613.0, 42.0])[:batch], context


def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The memory of a kernel without a table of pairs: its result, and a number per query and head."""
    result, _ = q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
    return result.flatten(2)


# Memory on the device of the computation, in hidden states: tokens x 5120 x 2 bytes


def peak(
    grid: tuple[int, int, int], memory: Memory, forwards: int = 1, chunk: int | None = None
) -> float:
    """What is held where the computation is: a hidden state elsewhere counts as none."""
    model = WanTransformer(A14B, attention=flash, device=META, dtype=torch.bfloat16)
    model.memory, model.chunk = memory, chunk
    x = torch.empty(1, 16, *grid, device=META, dtype=torch.bfloat16)
    context = torch.empty(1, 512, A14B.text_dim, device=META, dtype=torch.bfloat16)
    with torch.no_grad(), LiveBytes([x, context]) as live:
        _kept = [model(x, torch.empty(1, device=META), context) for _ in range(forwards)]
    elsewhere = 0 if memory.hidden_on is None else 1
    return live.peak / (token_grid(*grid).tokens * A14B.dim * 2) - elsewhere


ON_META = {
    "int8": Memory(int8=True),
    "host": Memory(hidden_on=META),
    "int8+host": Memory(int8=True, hidden_on=META),
}


@pytest.mark.parametrize(
    ("name", "grid", "least", "most"),
    [
        ("int8", P480, 2.0, 2.3),  # measured: 2.29
        ("int8", P720, 2.0, 2.3),  # 2.26
        ("host", P480, 2.0, 2.4),  # 2.36
        ("int8+host", P480, 1.0, 1.4),  # 1.39
    ],
)
def test_a_design_holds_one_or_two_hidden_states(
    name: str, grid: tuple[int, int, int], least: float, most: float
) -> None:
    assert least < peak(grid, ON_META[name]) <= most


def test_the_other_prompt_adds_its_velocity_and_no_more() -> None:
    one, two = (peak(P480, INT8, forwards=count) for count in (1, 2))
    assert two - one <= 64 * 4 / (5120 * 2) + 1e-6  # 64 float32 of 5120 bfloat16


def test_memory_of_eight_bits_grows_with_tokens_and_with_nothing_else() -> None:
    few, many = ((frames, 30, 52) for frames in (21, 26))
    tokens = [token_grid(*grid).tokens for grid in (few, many)]
    held = [peak(grid, INT8, chunk=256) * n for grid, n in zip((few, many), tokens, strict=True)]
    # Hidden state, keys, values with their scales, rotations, and a twentieth of the heads unpacked.
    assert (held[1] - held[0]) / (tokens[1] - tokens[0]) < 2.2  # measured: 2.194


# Eight bits


def test_packed_numbers_are_off_by_half_a_step_of_their_token_and_head() -> None:
    x = torch.randn(2, 700, 3, 16) * torch.logspace(-6, 4, 3)[:, None]
    x[:, 5] = 0
    centre = x.mean(1, keepdim=True)
    packed = Packed(700, centre)
    for where in (slice(0, 300), slice(300, 700)):
        packed.write(where, x[:, where])
    got = torch.cat(list(packed.read(1, torch.float32)), 2)
    left = x - centre
    step = left.abs().amax(-1, keepdim=True) / 127
    assert bool(((got - left).abs() <= 0.501 * step).all())


def test_softmax_does_not_see_what_keys_share() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(1, 400, 2, 64, generator=generator) for _ in range(3))
    wanted = sdpa(q, k, v)
    offset = 20 * torch.randn(1, 1, 2, 64, generator=generator)
    errors = []
    for centre in (shared([k + offset]), torch.zeros_like(offset)):
        packed = PackedKeysValues(400, centre)
        packed.keys.write(slice(None), k + offset)
        packed.values.write(slice(None), v)
        errors.append(relative(packed.attend(q.clone(), plain), wanted))
    assert errors[0] < 0.02 < 10 * errors[0] < errors[1]  # measured: 0.0095, 0.22


@pytest.mark.parametrize("tokens", [1, RUN, RUN + 1, 210, 32760])
def test_what_keys_share_is_taken_from_all_over_the_clip(tokens: int) -> None:
    places = spread(tokens)
    covered = [range(tokens)[where] for where in places]
    assert all(covered)
    assert covered[0][0] == 0
    assert covered[-1][-1] == tokens - 1
    assert sum(map(len, covered)) <= 1024


@pytest.mark.parametrize(
    ("dtype", "most"),  # measured: 0.0033, 0.0058
    [(torch.float32, 0.006), (torch.bfloat16, 0.012)],
)
@pytest.mark.parametrize("attention", [sdpa, plain])
def test_eight_bits_are_near_the_exact_forward(dtype: torch.dtype, most: float, attention) -> None:
    model, given = small(dtype, attention), inputs(dtype)
    model.chunk = 100
    with torch.no_grad():
        wanted = model(*given)
        model.memory = INT8
        got = model(*given)
    assert 1e-4 < relative(got, wanted) < most


def test_a_sample_in_eight_bits_is_what_it_is_alone() -> None:
    model, both = small(), inputs(batch=2)
    model.memory = INT8
    with torch.no_grad():
        got = model(*both)
        alone = torch.cat([model(*(part[i : i + 1] for part in both)) for i in range(2)])
    assert (
        relative(got, alone) < 1e-2
    )  # measured: 1e-6; a rounding that falls the other way is more


# A hidden state that lies elsewhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 64, 100])
@pytest.mark.parametrize("read", [False, True])
def test_a_hidden_state_that_travels_changes_no_bit(
    dtype: torch.dtype, chunk: int | None, read: bool
) -> None:
    model, (x, t, context) = small(dtype), inputs(dtype)
    model.chunk = chunk
    with torch.no_grad():
        text = model.read(context, x.dtype) if read else context
        for here, there in ((EXACT, HOST), (INT8, BOTH)):
            model.memory = here
            wanted = model(x, t, text)
            model.memory = there
            assert torch.equal(model(x, t, text), wanted)


def test_only_parts_travel_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    journeys: list[tuple[str, int]] = []
    take, put = Memory.take, Memory.put

    def taken(self: Memory, hidden: Tensor, where: slice, device: torch.device) -> Tensor:
        part = take(self, hidden, where, device)
        assert part.untyped_storage().data_ptr() != hidden.untyped_storage().data_ptr()
        journeys.append(("in", part.shape[1]))
        return part

    def brought(self: Memory, part: Tensor, hidden: Tensor, where: slice) -> None:
        journeys.append(("out", part.shape[1]))
        put(self, part, hidden, where)

    monkeypatch.setattr(Memory, "take", taken)
    monkeypatch.setattr(Memory, "put", brought)
    model = small()
    model.memory, model.chunk = HOST, 80
    with torch.no_grad():
        model(*inputs())
    total = {way: sum(n for way_, n in journeys if way_ == way) for way in ("in", "out")}
    layers = SMALL.num_layers
    # Per block in for keys and values, in and out for the rest; the embedding out, the head in.
    assert total == {"in": 210 * (2 * layers + 1), "out": 210 * (layers + 1)}


def test_with_gradients_everything_is_kept_as_it_comes() -> None:
    model, given = small(), inputs()
    model.requires_grad_(True)
    wanted = model(*given)
    model.memory = BOTH
    assert torch.equal(model(*given), wanted)


def test_designs_are_named_for_what_they_give_up() -> None:
    assert list(DESIGNS) == ["exact", "host", "int8", "int8+host"]
    assert all(memory.name == name for name, memory in DESIGNS.items())
