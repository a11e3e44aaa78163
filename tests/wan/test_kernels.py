"""Kernels that a run asks for run it, are in its name and its record, and are checked before it."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from wanexperts.tests.helpers import relative
from wanexperts.wan.checkpoint import BUNDLED, find_parts
from wanexperts.wan.cli import kernels as command
from wanexperts.wan.cli.kernels import add_kernels, with_kernels
from wanexperts.wan.cli.record import record
from wanexperts.wan.compiled import through
from wanexperts.wan.pipeline import Kernels, Pipeline, Request
from wanexperts.wan.pipeline import kernels as chosen
from wanexperts.wan.pipeline.keys import name_run

PROMPT = "a red circle moves left on a white background"


@pytest.fixture(scope="module")
def tiny() -> Pipeline:
    return Pipeline.load(**find_parts(BUNDLED, {}), device="cpu")


@pytest.fixture(scope="module")
def request_(tiny: Pipeline) -> Request:
    return Request(prompt=PROMPT, sampling=replace(tiny.defaults, steps=4), seed=1)


def asked(tiny: Pipeline, *words: str) -> Pipeline:
    parser = argparse.ArgumentParser()
    add_kernels(parser)
    return with_kernels(tiny, parser.parse_args(words))


@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
def test_a_run_compiles_each_branch_once(
    tiny: Pipeline, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two experts, two prompts, four steps, all blocks."""
    torch._dynamo.reset()
    counter = CompileCounter()
    for home in (chosen, command):
        monkeypatch.setattr(home, "can_compile", lambda _: True)
    monkeypatch.setattr(chosen, "through", lambda: through(counter))
    compiled = asked(tiny, "--compile")
    got, wanted = compiled.sample(request_), tiny.sample(request_)
    torch._dynamo.reset()
    assert relative(got, wanted) < 1e-5  # measured: 0
    # Attention stays outside, which makes two graphs of the branches that have it.
    assert 3 <= counter.frame_count <= 7


def test_other_kernels_are_runs_of_their_own(
    tiny: Pipeline, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "can_compile", lambda _: True)
    plan, runs = tiny.plan(request_), [tiny, asked(tiny), asked(tiny, "--compile"),
                                       asked(tiny, "--attention", "cudnn")]  # fmt: skip
    usual, same, compiled, cudnn = (name_run(run, request_, plan).run for run in runs)
    assert usual == same
    assert len({usual, compiled, cudnn}) == 3
    told = [record(run, request_, plan).attention for run in runs]
    assert told == ["pytorch", "pytorch", "pytorch, compiled blocks", "cudnn"]
    monkeypatch.setattr(command, "can_compile", lambda _: False)
    assert asked(tiny, "--compile") == tiny  # nothing is compiled, so nothing is written down
    assert Kernels(attention="flash", compiled=True).changes() == ("flash", "compiled blocks")


def test_what_does_not_work_is_refused_at_once(
    tiny: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sageattention", None)
    with pytest.raises(ValueError, match="attention='sage' needs a package"):
        asked(tiny, "--attention", "sage")
