"""Import Wan Recipe: its outputs run, and two KSamplers become the one run they stand for."""

from __future__ import annotations

import json

import pytest
import torch
from wanexperts import comfy_server
from wanexperts.tests.helpers import relative

from . import random_weights as files
from .graphs import EMPTY, ENCODE, LOADER, SAMPLER, SEED, base_graph, node, saved_latents

pytestmark = pytest.mark.comfy
RECIPE, GUIDER = "90", "91"
OFFICIAL = (
    "python generate.py --task t2v-A14B --sample_steps 6 --sample_shift 5 --sample_guide_scale 2.0,3.0 "
    f"--base_seed {SEED}"
)


def imported(text):
    """A run wired from nothing but the outputs of the node."""
    graph = base_graph()
    graph[RECIPE] = node("WanExpertsRecipe", recipe=text)
    graph[GUIDER] = node(
        "WanExpertsGuider", model_high_noise=(LOADER, 0), model_low_noise=(LOADER, 1),
        positive=(ENCODE, 0), negative=(ENCODE, 1), cfg_high_noise=(RECIPE, 4),
        cfg_low_noise=(RECIPE, 5), sigma_shift=(RECIPE, 6), switch="boundary", boundary=(RECIPE, 7),
        switch_step=0,
    )  # fmt: skip
    graph["92"] = node("RandomNoise", noise_seed=(RECIPE, 8))
    graph[SAMPLER] = node(
        "SamplerCustomAdvanced", noise=("92", 0), guider=(GUIDER, 0), sampler=(RECIPE, 1),
        sigmas=(RECIPE, 0), latent_image=(EMPTY, 0),
    )  # fmt: skip
    graph["93"] = node("PreviewAny", source=(RECIPE, 9))
    return graph


def test_an_official_command_runs_as_our_sampler_does(host):
    outputs = host.run(imported(OFFICIAL))
    wanted = host.run(base_graph(cfg_high_noise=3.0, cfg_low_noise=2.0))
    assert torch.equal(saved_latents(host, outputs), saved_latents(host, wanted))
    assert "low noise first" in outputs["93"]["text"][0]


def ksamplers(sampler, scheduler, steps, switch):
    """Two experts as ComfyUI's templates run them."""
    graph = base_graph()
    for slot in (0, 1):
        graph[f"4{slot}"] = node("ModelSamplingSD3", model=(LOADER, slot), shift=5.0)
    common = {
        "steps": steps, "sampler_name": sampler, "scheduler": scheduler, "positive": (ENCODE, 0),
        "negative": (ENCODE, 1),
    }  # fmt: skip
    graph["50"] = node(
        "KSamplerAdvanced", model=("40", 0), add_noise="enable", noise_seed=SEED, cfg=3.0,
        latent_image=(EMPTY, 0), start_at_step=0, end_at_step=switch,
        return_with_leftover_noise="enable", **common,
    )  # fmt: skip
    graph[SAMPLER] = node(
        "KSamplerAdvanced", model=("41", 0), add_noise="disable", noise_seed=0, cfg=2.0,
        latent_image=("50", 0), start_at_step=switch, end_at_step=10000,
        return_with_leftover_noise="disable", **common,
    )  # fmt: skip
    return graph


@pytest.mark.parametrize("scheduler", ["simple", "beta", "normal"])
@pytest.mark.parametrize("switch", [1, 3, 6])
def test_two_ksamplers_become_one_run(host, switch, scheduler):
    """Euler has no memory and does not look ahead: the results are the same."""
    graph = ksamplers("euler", scheduler, 6, switch)
    wanted = saved_latents(host, host.run(graph))
    outputs = host.run(imported(json.dumps(graph)))
    told = outputs["93"]["text"][0]
    assert f"step {switch} of 6" in told
    assert relative(saved_latents(host, outputs), wanted) < 1e-5


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ("dpmpp_2m", ["forget at the switch"]),
        ("heun", ["looks ahead within a step"]),
        ("dpm_2", ["looks ahead within a step", "drops the last but one"]),
        ("uni_pc", ["forget at the switch", "is not the official", "drops the last but one"]),
    ],
)
def test_what_differs_from_two_samplers_is_told(host, sampler, words):
    graph = ksamplers(sampler, "simple", 6, 3)
    wanted = saved_latents(host, host.run(graph))
    outputs = host.run(imported(json.dumps(graph)))
    told = outputs["93"]["text"][0]
    assert all(word in told for word in words)
    assert relative(saved_latents(host, outputs), wanted) > 1e-4
    # Without a switch there is nothing to differ in: the noise levels and the sampler are the same.
    graph = ksamplers(sampler, "simple", 6, 6)
    wanted = saved_latents(host, host.run(graph))
    outputs = host.run(imported(json.dumps(graph)))
    assert relative(saved_latents(host, outputs), wanted) < 1e-5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "nothing was pasted"),
        ("a cat", "paste the official command"),
        (json.dumps(ksamplers("gone", "simple", 6, 3)), "has no sampler 'gone'"),
        (json.dumps(ksamplers("euler", "gone", 6, 3)), "has no scheduler 'gone'"),
    ],
)
def test_what_cannot_be_read_is_refused_before_the_run(host, text, words):
    with pytest.raises(comfy_server.Refused) as error:
        host.run(imported(text))
    assert words in str(error.value)
    assert files.HIGH not in str(error.value)
