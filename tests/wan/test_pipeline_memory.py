"""Memory designs in whole runs of the tiny family: asked for, chosen, and taken where memory runs out."""

from __future__ import annotations

import argparse
import logging
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from wanexperts.tests.helpers import relative
from wanexperts.wan.checkpoint import BUNDLED, find_parts
from wanexperts.wan.cli import memory as command
from wanexperts.wan.pipeline import Pipeline, Request
from wanexperts.wan.pipeline.experts import Compute, Networks, Weights
from wanexperts.wan.pipeline.keys import name_run
from wanexperts.wan.transformer import DESIGNS, EXACT, SelfAttention

PROMPT = "a red circle moves left on a white background"


@pytest.fixture(scope="module")
def tiny() -> Pipeline:
    return Pipeline.load(**find_parts(BUNDLED, {}), device="cpu")


@pytest.fixture(scope="module")
def request_(tiny: Pipeline) -> Request:
    return Request(prompt=PROMPT, sampling=replace(tiny.defaults, steps=6), seed=1)


@pytest.fixture(scope="module")
def latents(tiny: Pipeline, request_: Request) -> dict[str, Tensor]:
    return {name: replace(tiny, memory=memory).sample(request_) for name, memory in DESIGNS.items()}


def frames(pipeline: Pipeline, latents: Tensor) -> Tensor:
    return torch.cat(list(pipeline.decode(latents))).double()


def test_a_run_in_eight_bits_is_near_the_exact_one(tiny: Pipeline, latents) -> None:
    exact, int8 = latents["exact"], latents["int8"]
    error = (frames(tiny, int8) - frames(tiny, exact)).square().mean().item()
    decibels = 10 * math.log10(255**2 / error)
    assert 1e-4 < relative(int8, exact) < 0.04  # measured: 0.0136
    assert decibels > 40  # measured: 50.3


def test_a_hidden_state_on_the_host_changes_no_bit_of_a_run(latents) -> None:
    assert torch.equal(latents["host"], latents["exact"])
    assert torch.equal(latents["int8+host"], latents["int8"])


def test_only_designs_that_change_numbers_are_runs_of_their_own(tiny, request_: Request) -> None:
    plan = tiny.plan(request_)
    exact, host, int8, both = (
        name_run(replace(tiny, memory=memory), request_, plan).run for memory in DESIGNS.values()
    )
    assert exact == host != int8 == both


def rungs(tiny: Pipeline, request_: Request, device: str) -> list[str]:
    plan = tiny.plan(request_)
    weights = Weights(experts=tiny.experts, loras={}, device=torch.device(device), stream="never")
    networks = Networks(weights, plan, (torch.empty(0), torch.empty(0)))
    return [rung.name for rung in networks.relief(Compute(dtype=torch.float32))]


def test_where_memory_runs_out_the_designs_are_the_last_rungs(tiny, request_: Request) -> None:
    inexact = "(near the exact numbers, not equal to them)"
    assert rungs(tiny, request_, "cuda")[2:] == [
        "the hidden state in main memory (the same numbers)",
        f"keys and values in 8 bits {inexact}",
        f"the hidden state in main memory and keys and values in 8 bits {inexact}",
    ]
    assert rungs(tiny, request_, "cpu")[2:] == [f"keys and values in 8 bits {inexact}"]


def test_a_run_goes_on_in_eight_bits_where_the_exact_keys_do_not_fit(
    tiny: Pipeline, request_: Request, latents, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("no room for keys and values. More.")

    monkeypatch.setattr(SelfAttention, "_keys_values", full)
    with caplog.at_level(logging.WARNING):
        got = tiny.sample(request_)
    assert torch.equal(got, latents["int8"])
    assert "it is done again with keys and values in 8 bits (near" in caplog.text


# The command line


def parsed(*words: str) -> str:
    parser = argparse.ArgumentParser()
    command.add_memory(parser)
    asked: str = parser.parse_args(words).memory
    return asked


def test_the_exact_design_runs_without_a_word_where_it_fits(tiny, request_, caplog) -> None:
    got = command.with_memory(tiny, tiny.plan(request_), parsed())
    assert got.memory == EXACT
    assert caplog.text == ""


def test_what_is_asked_for_runs_and_is_told(tiny, request_, caplog) -> None:
    got = command.with_memory(tiny, tiny.plan(request_), parsed("--memory", "int8+host"))
    assert got.memory == DESIGNS["int8+host"]
    assert "memory int8+host: the hidden state in main memory and keys" in caplog.text


def test_a_device_that_is_too_small_gets_a_smaller_design_and_the_reason(
    tiny, request_, caplog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "device_bytes", lambda _: 3 * 10**6)
    got = command.with_memory(tiny, tiny.plan(request_), parsed())
    assert got.memory.name == "int8"
    assert "the exact design would take" in caplog.text
