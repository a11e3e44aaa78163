"""Watching a run: one bar, words that name stage and step, and a sheet of frames at every step."""

from __future__ import annotations

import io
import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from wanexperts import comfy_server

from .checkouts import CHECKOUTS
from .graphs import EMPTY, SAMPLER, STEPS, base_graph, node

pytestmark = pytest.mark.comfy
_seed = itertools.count(9000)
EXPERT_INPUTS = ("model_high_noise", "model_low_noise", "positive", "negative")


def watched(host: Any) -> list[dict[str, Any]]:
    return list(host.events(base_graph(noise_seed=next(_seed))))


def texts(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(node, text) of every progress text."""
    return [(e["data"]["node"], e["data"]["text"]) for e in events if e["type"] == "text"]


def sheets(events: list[dict[str, Any]]) -> list[Image.Image]:
    previews = [event["data"]["image"] for event in events if event["type"] == "preview"]
    return [Image.open(io.BytesIO(file)) for file in previews]


def test_words_name_stage_step_and_time_left(host):
    nodes, words = zip(*texts(watched(host)), strict=True)
    assert set(nodes) == {SAMPLER}
    assert words[0] == f"high noise 0/{STEPS}"
    assert words[-1].startswith(f"{STEPS}/{STEPS}, took ")
    high, low = r"high noise \d/6, [\d.]+ s left", r"low noise \d/6, [\d.]+ s left"
    switch = 3  # of six steps at shift 5 the first three are above the boundary
    for step, told in enumerate(words[1:-1], start=1):
        assert re.fullmatch(high if step < switch else low, told), told
        assert f" {step}/{STEPS}" in told


def test_every_step_shows_a_captioned_sheet_in_one_stream(host):
    found = sheets(watched(host))
    assert len(found) == STEPS
    assert {max(sheet.size) for sheet in found} == {512}
    # Three latent frames of 8 x 6 positions beside each other, and a strip of letters below.
    width, height = found[0].size
    assert width == 512
    assert height == round(512 * 6 / 24) + 2 * (512 // 28)
    strip = found[0].convert("L").crop((0, height - 30, width, height))
    low, high = strip.getextrema()
    assert low < 40
    assert high > 180


def test_the_bar_is_one_and_the_log_names_the_stages(host):
    before = len(host.log.read_text())
    seen = [e["data"] for e in watched(host) if e["type"] == "progress"]
    assert [(e["value"], e["max"]) for e in seen] == [(n, STEPS) for n in range(STEPS + 1)]
    lines = re.split(r"[\r\n]+", host.log.read_text()[before:])
    bars = [line for line in lines if f"/{STEPS} [" in line]
    assert all(re.match(r"(high|low) noise: ", line) for line in bars), bars
    assert bars[0].startswith("high noise: ")
    assert re.match(rf"low noise: 100%.* {STEPS}/{STEPS} \[", bars[-1])


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_adaptive"])
def test_words_come_beside_the_bar_of_comfyui_s_own_node(host, sampler):
    graph = base_graph()
    experts = {name: graph[SAMPLER]["inputs"][name] for name in EXPERT_INPUTS}
    graph[SAMPLER] = node(
        "SamplerCustomAdvanced", noise=("21", 0), guider=("22", 0), sampler=("23", 0),
        sigmas=("24", 0), latent_image=(EMPTY, 0),
    )  # fmt: skip
    graph["21"] = node("RandomNoise", noise_seed=next(_seed))
    graph["22"] = node(
        "WanExpertsGuider", **experts, cfg_high_noise=2.0, cfg_low_noise=1.0, sigma_shift=5.0,
        switch="auto", boundary=0.875, switch_step=1,
    )  # fmt: skip
    graph["23"] = node("KSamplerSelect", sampler_name=sampler)
    graph["24"] = node("WanProbeSigmas", sigmas="1, 0.9, 0.5, 0.1")
    events = list(host.events(graph))
    assert events[-1]["type"] == "execution_success"
    told = texts(events)
    assert told[0] == (SAMPLER, "high noise 0/3")
    assert told[-1][1].startswith("3/3, took ")


@pytest.mark.parametrize("checkout", CHECKOUTS, ids=lambda path: path.name)
def test_no_previews_are_made_where_none_are_wanted(checkout: Path, random_models: Path):
    options = ("--cpu", "--preview-method", "none")
    with comfy_server.Host(checkout, options=options) as server:
        shutil.copytree(random_models, server.base / "models", dirs_exist_ok=True)
        events = watched(server)
    assert not sheets(events)
    assert len(texts(events)) == STEPS + 1
