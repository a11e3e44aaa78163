"""A whole run: file, progress, plan, parity with the library, loading order, interrupt."""

from __future__ import annotations

import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from PIL import Image, ImageStat
from safetensors.torch import load_file, save_file
from wanexperts.wan.config import T2V_A14B
from wanexperts.wan.pipeline import Pipeline, Request
from wanexperts.wan.switch import Switch

from . import random_weights as files
from .graphs import (
    FRAMES,
    HEIGHT,
    NEGATIVE,
    PROMPT,
    SAMPLER,
    SAMPLING,
    SEED,
    STEPS,
    VIDEO,
    WIDTH,
    base_graph,
    node,
    saved_latents,
    video_graph,
)

pytestmark = pytest.mark.comfy


def library_latents(models: Path, **changes: object) -> torch.Tensor:
    pipeline = Pipeline.load(
        high=models / files.DIFFUSION_MODELS / files.HIGH,
        low=models / files.DIFFUSION_MODELS / files.LOW,
        vae=models / files.VAE / files.VAE_FILE,
        text=models / files.TEXT_ENCODERS / files.TEXT_FILE,
        device="cpu",
    )
    sampling = replace(
        T2V_A14B.sampling,
        steps=STEPS,
        shift=SAMPLING["sigma_shift"],
        boundary=SAMPLING["boundary"],
        guidance_high=SAMPLING["cfg_high_noise"],
        guidance_low=SAMPLING["cfg_low_noise"],
        num_frames=FRAMES,
        height=HEIGHT,
        width=WIDTH,
        negative_prompt=NEGATIVE,
    )
    switch = Switch("step", changes.pop("switch_step")) if "switch_step" in changes else Switch()
    request = Request(
        prompt=PROMPT, sampling=replace(sampling, **changes), seed=SEED, switch=switch
    )
    return pipeline.sample(request)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def test_graph_ends_with_an_mp4_that_carries_its_workflow(host):
    graph = video_graph()
    extra = {"extra_pnginfo": {"workflow": {"version": 0.4, "nodes": []}}}
    events = list(host.events(graph, extra))
    saved = next(
        e["data"]["output"]["images"][0]
        for e in events
        if e["type"] == "executed" and e["data"]["node"] == VIDEO
    )
    with av.open(str(host.path(saved))) as container:
        frames = sum(1 for _ in container.decode(video=0))
        stream = container.streams.video[0]
        assert (stream.width, stream.height, frames) == (WIDTH, HEIGHT, FRAMES)
        assert stream.average_rate == 8
        prompt = json.loads(container.metadata["prompt"])
        assert {i: n["inputs"] for i, n in prompt.items()} == {
            i: n["inputs"] for i, n in graph.items()
        }
        assert str(host.base) not in container.metadata["prompt"]
        assert json.loads(container.metadata["workflow"])["version"] == 0.4
    assert not list(host.path(saved).parent.glob("*.part"))


def test_progress_runs_once_from_0_to_n(host):
    graph = base_graph(noise_seed=101)
    seen = [e["data"] for e in host.events(graph) if e["type"] == "progress"]
    assert {e["node"] for e in seen} == {SAMPLER}
    assert {e["max"] for e in seen} == {STEPS}
    values = [e["value"] for e in seen]
    assert values[0] == 0
    assert values[-1] == STEPS
    assert values == sorted(values)


@pytest.mark.parametrize(
    ("node_inputs", "library"),
    [
        ({}, {}),
        (
            {"sampler_name": "dpm++", "scheduler": "dpm++"},
            {"solver": "dpm++", "schedule": "dpm++"},
        ),
        ({"sampler_name": "euler", "scheduler": "shifted", "switch": "step", "switch_step": 1},
         {"solver": "euler", "schedule": "shifted", "switch_step": 1}),
        ({"cfg_high_noise": 1.0, "switch": "boundary", "boundary": 0.95},
         {"guidance_high": 1.0, "boundary": 0.95}),
        ({"switch": "step", "switch_step": 0}, {"switch_step": 0}),
        ({"switch": "step", "switch_step": STEPS}, {"switch_step": STEPS}),
    ],
    ids=["unipc", "dpm++", "euler-step", "boundary", "all-low", "all-high"],
)  # fmt: skip
def test_latents_equal_the_library(host, random_models, node_inputs, library):
    got = saved_latents(host, host.run(base_graph(**node_inputs)))
    wanted = library_latents(random_models, **library)
    assert relative(got, wanted) < 1e-5


def test_plan_says_which_step_ran_where(host):
    graph = base_graph(switch="step", switch_step=2, noise_seed=7)
    graph["20"] = node("PreviewAny", source=(SAMPLER, 1))
    plan = host.run(graph)["20"]["text"][0]
    experts = re.findall(r"^ +\d+ .*  (\w+ noise)$", plan, re.MULTILINE)
    assert experts == ["high noise"] * 2 + ["low noise"] * 4


def log_of(host, graph) -> list[str]:
    host.post("/free", {"unload_models": True})
    before = len(host.log.read_text())
    host.run(graph)
    keep = ("Requested to load HostModel", "switching to the low noise stage", "steps high noise,")
    lines = host.log.read_text()[before:].splitlines()
    return [k for line in lines for k in keep if k in line]


def test_low_expert_is_loaded_at_the_switch(host):
    load, switch, start = (
        "Requested to load HostModel",
        "switching to the low noise stage",
        "steps high noise,",
    )
    assert log_of(host, base_graph(noise_seed=8)) == [start, load, switch, load]
    none_high = base_graph(noise_seed=9, switch="step", switch_step=0)
    assert log_of(host, none_high) == [start, load]
    all_high = base_graph(noise_seed=10, switch="step", switch_step=STEPS)
    assert log_of(host, all_high) == [start, load]


def test_interrupt_stops_within_a_step_and_leaves_no_trace(host):
    fresh = base_graph(noise_seed=11)
    wanted = saved_latents(host, host.run(fresh))
    long = base_graph(noise_seed=12, steps=60)
    long["5"]["inputs"].update(width=320, height=320, frames=21)
    asked, last, ended = None, 0, ""
    for event in host.events(long):
        if event["type"] == "progress" and event["data"]["node"] == SAMPLER:
            last = event["data"]["value"]
            if asked is None and last >= 2:
                asked = last
                host.post("/interrupt", {})
        ended = event["type"]
    assert ended == "execution_interrupted"
    assert last <= asked + 1
    fresh["20"] = node("SaveLatent", samples=(SAMPLER, 0), filename_prefix="latents/again")
    fresh[SAMPLER]["inputs"]["noise_seed"] = 13
    host.run(fresh)
    fresh[SAMPLER]["inputs"]["noise_seed"] = 11
    assert torch.equal(saved_latents(host, host.run(fresh), "20"), wanted)


def test_preview_shows_more_than_the_first_frame(host):
    graph = base_graph(noise_seed=14)
    events = host.events(graph)
    pictures = [e["data"]["image"] for e in events if e["type"] == "preview"]
    assert len(pictures) == STEPS
    with Image.open(io.BytesIO(pictures[-1])) as picture:
        # Three latent frames beside each other; in the strip below there are words.
        width, height = picture.width // 3, round(picture.width / 3 * HEIGHT / WIDTH)
        frames = [picture.crop((x, 0, x + width, height)) for x in range(0, 3 * width, width)]
    assert all(max(ImageStat.Stat(frame).mean) > 20 for frame in frames)
    assert len({frame.tobytes() for frame in frames}) == 3


def test_official_shard_folders_load(host, random_models):
    folder = files.OFFICIAL_FOLDER
    graph = base_graph(noise_seed=16)
    wanted = saved_latents(host, host.run(graph))
    for role in ("high", "low"):
        graph["1"]["inputs"][f"model_{role}_noise"] = f"{folder}/{role}_noise_model/"
    graph["8"]["inputs"]["filename_prefix"] = "latents/shards"
    assert torch.equal(saved_latents(host, host.run(graph)), wanted)


def test_a_replaced_file_is_loaded_again(host, random_models):
    models = host.base / "models" / files.DIFFUSION_MODELS
    shutil.copy(models / files.LOW, models / "replaced_low_noise.safetensors")
    graph = base_graph(noise_seed=17)
    graph["1"]["inputs"]["model_low_noise"] = "replaced_low_noise.safetensors"
    before = saved_latents(host, host.run(graph))
    state = {k: v * 1.5 for k, v in load_file(models / files.LOW).items()}
    save_file(state, models / "replaced_low_noise.safetensors", {"wan_role": "low_noise"})
    assert relative(saved_latents(host, host.run(graph)), before) > 1e-3
