"""Blocks are compiled once: not for each block, step, expert, LoRA or clip, and with the same numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from wanexperts.tests.helpers import random_state, relative
from wanexperts.wan import compiled
from wanexperts.wan.attention import sdpa
from wanexperts.wan.compiled import Apart, can_compile, compile_blocks
from wanexperts.wan.config import TransformerConfig
from wanexperts.wan.ops import set_patches
from wanexperts.wan.transformer import SelfAttention, WanTransformer

SMALL = TransformerConfig(dim=256, ffn_dim=688, num_heads=2, num_layers=3, text_dim=48)
BRANCHES = 3
pytestmark = pytest.mark.filterwarnings("ignore")  # of the compiler about itself


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def expert(seed: int) -> WanTransformer:
    model = WanTransformer(SMALL).eval().requires_grad_(False)
    model.load_state_dict(random_state(model, seed))
    model.chunk = 64
    return model


def forward(model: WanTransformer, frames: int = 3, level: float = 613.0) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 16, frames, 14, 20, generator=generator)  # 70 tokens a frame
    context = torch.zeros(1, 512, SMALL.text_dim)
    context[:, :37] = torch.randn(1, 37, SMALL.text_dim, generator=generator)
    with torch.no_grad():
        return model(x, torch.tensor([level]), model.read(context, x.dtype))


def test_one_graph_a_branch_serves_everything() -> None:
    high, low = expert(1), expert(5)
    wanted = forward(high), forward(low), forward(high, 5, 420.0)
    counter = CompileCounter()
    for model in (high, low):
        assert compile_blocks(model, counter)
    got = forward(high), forward(low), forward(high, 5, 420.0)
    assert [relative(a, b) for a, b in zip(got, wanted, strict=True)] == [0, 0, 0]
    first = counter.frame_count
    assert first <= BRANCHES + 1  # one part more where a query meets its rotation
    # A LoRA is in the weights that go in; another strength is another number.
    for strength in (0.5, 0.25):
        for model in (high, low):
            for block in model.blocks:
                set_patches(block.ffn[0], "weight", [lambda w, s=strength: w * (1 + s)])
        forward(high), forward(low)
    # A weight that was patched is no parameter any more: once more, not for each block.
    assert counter.frame_count <= first + 1
    plain = expert(1)
    for block in plain.blocks:
        set_patches(block.ffn[0], "weight", [lambda w: w * 1.25])
    assert relative(forward(high), forward(plain)) == 0
    assert counter.frame_count <= first + 1


def test_attention_of_a_host_stays_outside() -> None:
    model, calls = expert(1), []

    def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(torch.compiler.is_compiling())
        return sdpa(q, k, v, bias)

    wanted = forward(model)
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attention = Apart(attention)
    counter = CompileCounter()
    compile_blocks(model, counter)
    assert relative(forward(model), wanted) == 0
    assert counter.frame_count > 0
    assert calls == [False] * (SMALL.num_layers * 2 * 4)  # 210 tokens in four parts


def test_without_a_compiler_blocks_run_as_they_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(function: object, **_: object) -> object:
        def call(*_: object) -> Tensor:
            raise RuntimeError("no working C++ compiler\nand much more")

        return call

    model = expert(1)
    wanted = forward(model)
    can_compile.cache_clear()
    monkeypatch.setattr(compiled.torch, "compile", broken)
    try:
        assert not compile_blocks(model)
        assert not compile_blocks(model)
    finally:
        can_compile.cache_clear()
    assert torch.equal(forward(model), wanted)
    (record,) = caplog.records
    assert "no working C++ compiler); blocks run uncompiled" in record.message
