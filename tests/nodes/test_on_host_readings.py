"""An expert reads each prompt of a run once, and what it keeps is never stale."""

from __future__ import annotations

import pytest

from .graphs import ENCODE, LOADER, base_graph, node

pytestmark = pytest.mark.comfy
STEPS = 4
PROMPTS = 2
SAME = 1e-5
"""Measured: at most 9e-7 in float32, where a few keys stand for the rows after the text."""


def probe(host, kind: str, *, pytorch: bool = True) -> list[float]:
    """Readings a block in a run that keeps them and in one that does not, their difference, and the rest."""
    graph = base_graph()
    graph = {key: graph[key] for key in (LOADER, "2", ENCODE)}
    texts = {"positive": (ENCODE, 0), "negative": (ENCODE, 1)}
    graph["read"] = node("WanProbeReading", model=(LOADER, 0), kind=kind, pytorch=pytorch, **texts)
    graph["told"] = node("PreviewAny", source=("read", 0))
    return [float(word) for word in host.run(graph)["told"]["text"][0].split()]


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_prompts_are_read_once_in_a_run(host, kind):
    few, many, error, left = probe(host, kind)
    # Both prompts in one forward are one reading.
    assert few <= PROMPTS
    assert many == few * STEPS
    assert error < SAME
    assert left == 0


@pytest.mark.parametrize("kind", ["hooks", "block"])
def test_what_may_be_stale_is_not_kept(host, kind):
    """Of the same prompt with and without a LoRA on a schedule, or sent on changed by a block's patch."""
    few, many, error, _ = probe(host, kind)
    assert few == many
    assert error == 0  # 2.6 % with hooks if readings were kept through their changes


def test_without_a_bias_the_rows_are_whole_and_the_same(host):
    """ComfyUI's other backends: whole rows of a resident layer are made again, to the same bits."""
    few, many, error, _ = probe(host, "plain", pytorch=False)
    assert few == many
    assert error == 0
