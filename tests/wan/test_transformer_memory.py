"""How little a forward holds and does: operations, live tensors, passes, and parts that change nothing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from wanexperts.benchmarks.traffic import FusedNorm, Traffic
from wanexperts.tests.helpers import random_state, relative
from wanexperts.wan import layers, ops
from wanexperts.wan.attention import log_counts, plain, sdpa
from wanexperts.wan.config import T2V_A14B, TransformerConfig
from wanexperts.wan.cost.live import META, LiveBytes
from wanexperts.wan.shapes import token_grid
from wanexperts.wan.transformer import WanTransformer, chunk_tokens
from wanexperts.wan.transformer import model as model_file

A14B = replace(T2V_A14B.transformer, num_layers=1)
SMALL = TransformerConfig(dim=256, ffn_dim=688, num_heads=2, num_layers=3, text_dim=48)
GRIDS = {"480p/81": (21, 60, 104), "720p/81": (21, 90, 160), "720p/193": (49, 90, 160)}


def small(dtype: torch.dtype = torch.float32) -> WanTransformer:
    model = WanTransformer(SMALL, dtype=dtype).eval().requires_grad_(False)
    model.load_state_dict(random_state(model, 1))
    return model


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 16, 3, 14, 20, generator=generator).to(dtype)  # 210 tokens
    context = torch.zeros(1, 512, SMALL.text_dim)
    context[:, :37] = torch.randn(1, 37, SMALL.text_dim, generator=generator)
    return x, torch.tensor([613.0]), context


def on_meta(grid: tuple[int, int, int], attention=sdpa, layers: int = 1):
    model = WanTransformer(
        replace(A14B, num_layers=layers), attention=attention, device=META, dtype=torch.bfloat16
    )
    x = torch.empty(1, 16, *grid, device=META, dtype=torch.bfloat16)
    context = torch.empty(1, 512, A14B.text_dim, device=META, dtype=torch.bfloat16)
    return model, x, torch.empty(1, device=META), context


def flash(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """The memory of a kernel without a table of pairs: its result, and a number per query and head."""
    result, _ = q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
    return result.flatten(2)


# Operations; the table was counted apart on diffusers' implementation, in TFLOP.


@pytest.mark.parametrize(("name", "wanted"), [("480p/81", 1678.37), ("720p/81", 6523.44)])
def test_a14b_makes_the_published_number_of_operations(name: str, wanted: float) -> None:
    counts = []
    for count in (1, 2):
        model, *given = on_meta(GRIDS[name], layers=count)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*given)
        counts.append(counter.get_total_flops())
    one, two = counts
    assert float(f"{(one + 39 * (two - one)) / 1e12:.6g}") == wanted


def test_a_text_that_was_read_leaves_out_its_padding_and_its_projections() -> None:
    """40 blocks at 480p: 1678.37 TFLOP with 512 rows, 1664.0 from the second forward on with 40."""
    model = WanTransformer(SMALL, attention=plain)  # a fused kernel on the CPU is not counted
    x, t, context = inputs()
    text = model.read(context, x.dtype)
    rows, dim, tokens = text.rows.shape[1], SMALL.dim, 210
    assert 37 < rows <= 40
    totals = []
    for given in (context, text, text):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x, t, given)
        totals.append(counter.get_total_flops())
    projections = 2 * 2 * dim**2 * SMALL.num_layers
    scores = 4 * tokens * dim * SMALL.num_layers
    embedding = 2 * 512 * (SMALL.text_dim + dim) * dim
    assert (
        totals[0] - totals[1]
        == 512 * projections - rows * projections + (512 - rows) * scores + embedding
    )
    assert totals[1] - totals[2] == rows * projections


# Memory, in hidden states of the compute dtype: tokens x 5120 x 2 bytes


def peak(grid: tuple[int, int, int], forwards: int = 1, chunk: int | None = None) -> float:
    model, x, t, context = on_meta(grid, flash)
    model.chunk = chunk
    with torch.no_grad(), LiveBytes([x, context]) as live:
        _kept = [model(x, t, context) for _ in range(forwards)]
    return live.peak / (token_grid(*grid).tokens * A14B.dim * 2)


@pytest.mark.parametrize("name", GRIDS)
def test_a_forward_holds_three_hidden_states(name: str) -> None:
    got = peak(GRIDS[name])
    assert 3.0 < got <= 3.3, "measured: 3.24, 3.23, 3.14; latents, text and rotations included"
    # The other prompt adds what its velocity takes, 64 float32 of 5120 bfloat16.
    assert peak(GRIDS[name], forwards=2) - got <= 64 * 4 / (5120 * 2) + 1e-6


def test_memory_grows_with_tokens_and_with_nothing_else() -> None:
    sizes = [(frames, 90, 160) for frames in (11, 21, 31)]
    tokens = [token_grid(*size).tokens for size in sizes]
    held = [peak(size, chunk=4096) * count for size, count in zip(sizes, tokens, strict=True)]
    slopes = [(held[i + 1] - held[i]) / (tokens[i + 1] - tokens[i]) for i in range(2)]
    assert slopes == pytest.approx([slopes[0]] * 2, rel=1e-3)
    assert slopes[0] < 3.07  # hidden state, keys, values, and 512 bytes of rotations per token


def test_parts_are_of_one_size_a_twentieth_and_not_of_few_tokens() -> None:
    sizes = {1: 1, 1024: 1024, 1560: 780, 32760: 1638, 75600: 3780, 176400: 4010}
    assert {tokens: chunk_tokens(tokens) for tokens in sizes} == sizes


# Passes


@pytest.mark.parametrize("fused", ["meta", "nowhere"])  # is RMS norm one kernel, as on a GPU?
def test_few_passes_over_the_hidden_state(monkeypatch: pytest.MonkeyPatch, fused: str) -> None:
    monkeypatch.setattr(ops, "FUSED_RMS_NORM", (fused,))
    model, x, t, context = on_meta(GRIDS["480p/81"], flash)
    grid = token_grid(*GRIDS["480p/81"])
    with torch.no_grad():
        hidden, _, tokens = model.embed(x, t, context, grid)
        with Traffic() as traffic, FusedNorm(traffic):
            model.blocks[0](hidden, tokens)
    passes = traffic.bytes / hidden.numel()
    if fused == "nowhere":  # a CPU, where a product ends in GELU; see the next test
        passes -= traffic.by["gelu_.default"] / hidden.numel()
    assert passes <= 75, "measured: 73.9 where RMS norm is one kernel, 73.6 where not"


@pytest.mark.skipif(layers.ends_in_gelu() is None, reason="oneDNN has no bfloat16 on this CPU")
def test_a_product_ends_in_gelu_on_a_cpu() -> None:
    linear = small(torch.bfloat16).blocks[0].ffn[0]
    x = torch.randn(1, 50, SMALL.dim, generator=torch.Generator().manual_seed(3)).bfloat16()
    ready = layers.ready(linear, x)
    with torch.no_grad():
        with Traffic() as traffic:
            got = layers.gelu(ready, x)
        assert traffic.bytes == 0  # beside the product
        in_two = layers.gelu(linear, x)
        wide = functional.linear(x.double(), linear.weight.double(), linear.bias.double())
        exact = functional.gelu(wide, approximate="tanh")
        # Rounded once instead of twice. Measured: 1.7e-3, 1.8e-3
        assert (got - exact).norm() < (in_two - exact).norm() < 3e-3 * exact.norm()
        x[0, 0, 0] = torch.nan  # is never lost: a run that yields one has to end
        assert layers.gelu(ready, x).isnan().any(-1).tolist() == [[True] + [False] * 49]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_and_their_factors_make_the_norm(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    norm = ops.RMSNorm(64, eps=1e-6)
    norm.weight.data = torch.randn(64, generator=generator)
    x = torch.randn(2, 5, 64, generator=generator).mul(1e4).to(dtype)  # float16 ends at 65504
    with torch.no_grad():
        wanted = functional.rms_norm(x.double(), (64,), norm.weight.double(), 1e-6)
        rows, factors = layers.weighted(norm, x)
    whole = rows if factors is None else rows.float() * factors
    assert rows.dtype == dtype
    assert relative(whole.double(), wanted) < (1e-6 if dtype == torch.float32 else 8e-3)
    theirs = torch.nn.RMSNorm(64)  # a layer of another maker, such as a host's, is called
    assert torch.equal(layers.weighted(theirs.to(dtype), x)[0], theirs(x))


# Parts change nothing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [64, 100, 192])
def test_parts_give_the_same_numbers(dtype: torch.dtype, chunk: int) -> None:
    model, given = small(dtype), inputs(dtype)
    with torch.no_grad():
        whole = model(*given)
        model.chunk = chunk
        parts = model(*given)
    assert relative(parts, whole) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_forwards_with_and_without_gradients_agree() -> None:
    model, given = small(), inputs()
    with torch.no_grad():
        wanted = model(*given)
    model.requires_grad_(True)
    got = model(*given)
    assert relative(got.detach(), wanted) < 1e-6
    got.square().mean().backward()
    silent = [
        n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert silent == []


def test_a_sample_of_a_batch_is_what_it_is_alone() -> None:
    model = small()
    x, _, context = inputs()
    both = torch.cat([x, x.flip(3)]), torch.tensor([613.0, 42.0]), torch.cat([context, context * 2])
    with torch.no_grad():
        got = model(*both)
        model.chunk = 50
        assert relative(model(*both), got) < 1e-6
        alone = [model(*(part[i : i + 1] for part in both)) for i in range(2)]
    assert relative(got, torch.cat(alone)) < 1e-5


def test_inputs_stay_as_they_are() -> None:
    model, given = small(), inputs()
    copies = [tensor.clone() for tensor in given]
    with torch.no_grad():
        model(*given)
    assert all(torch.equal(*pair) for pair in zip(given, copies, strict=True))


def test_rotations_are_made_once_per_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    made, true = [], model_file.rope_table
    monkeypatch.setattr(model_file, "rope_table", lambda *a: made.append(a[0]) or true(*a))
    model = small()
    x, t, context = inputs()
    with torch.inference_mode():
        for shape in (x, x, x[..., :10], x):
            model(shape, t, context)
    assert [tuple(grid) for grid in made] == [(3, 7, 10), (3, 7, 5), (3, 7, 10)]
    model.requires_grad_(True)(
        x, t, context
    ).sum().backward()  # made in inference, used in training


# Text that was read once


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_few_keys_weigh_as_much_as_all_they_stand_for(dtype: torch.dtype) -> None:
    for count in range(513):
        biases = log_counts(count, dtype)
        assert torch.tensor(biases).to(dtype).tolist() == pytest.approx(biases, rel=1e-7, abs=0)
        assert math.fsum(map(math.exp, biases)) == pytest.approx(count, rel=2e-6)
        assert len(biases) <= 4


@pytest.mark.parametrize("attention", [sdpa, plain])
@pytest.mark.parametrize("length", [0, 1, 37, 511, 512])
def test_a_text_that_was_read_equals_its_512_rows(length: int, attention) -> None:
    model = WanTransformer(SMALL, attention=attention).eval().requires_grad_(False)
    model.load_state_dict(random_state(model, 1))
    x, t, _ = inputs()
    context = torch.zeros(1, 512, SMALL.text_dim)
    context[:, :length] = torch.randn(1, length, SMALL.text_dim)
    with torch.no_grad():
        wanted = model(x, t, context)
        text = model.read(context, x.dtype)
        for _ in range(2):  # the second time from what was kept
            assert relative(model(x, t, text), wanted) < 2e-6  # measured: 7e-7


def test_keys_and_values_of_a_text_are_made_once() -> None:
    model = small()
    x, t, context = inputs()
    calls = []
    for block in model.blocks:
        block.cross_attn.k.register_forward_hook(lambda *_: calls.append("k"))
        block.cross_attn.v.register_forward_hook(lambda *_: calls.append("v"))
    with torch.no_grad():
        text = model.read(context, x.dtype)
        for _ in range(3):
            model(x, t, text)
    assert calls == ["k", "v"] * SMALL.num_layers


# Weights are made ready once for all parts


def test_a_patched_weight_is_patched_once_per_block() -> None:
    model, given, seen = small(), inputs(), []
    linear = model.blocks[0].ffn[0]
    with torch.no_grad():
        wanted = model(*given)
        ops.set_patches(linear, "weight", [lambda w: seen.append(w.shape) or w])
        model.chunk = 30
        assert relative(model(*given), wanted) < 1e-6
    assert len(seen) == 1
