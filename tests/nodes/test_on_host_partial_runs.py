"""Runs over part of the way: they start from the latents they are given, as in any other sampler."""

from __future__ import annotations

import pytest
import torch

from .graphs import (
    EMPTY,
    ENCODE,
    HEIGHT,
    LOADER,
    SAMPLER,
    SAVE,
    SEED,
    STEPS,
    WIDTH,
    base_graph,
    node,
    saved_latents,
)
from .test_on_host_interop import advanced
from .test_on_host_run import relative

pytestmark = pytest.mark.comfy


def continued(**inputs):
    """The graph of a second run on what the base graph made."""
    graph = base_graph()
    graph["80"] = node("SamplerCustomAdvanced", latent_image=(SAMPLER, 0), **inputs)
    graph[SAVE]["inputs"]["samples"] = ["80", 0]
    parts = advanced("euler", switch="auto")
    graph |= {i: parts[i] for i in ("30", "31", "32", "33")}
    return graph


@pytest.mark.parametrize("step", [1, 2, 4])
def test_two_halves_are_the_whole_run(host, step):
    whole = advanced("euler", switch="auto")
    wanted = saved_latents(host, host.run(whole))
    graph = advanced("euler", switch="auto")
    graph["81"] = node("SplitSigmas", sigmas=("33", 0), step=step)
    graph[SAMPLER]["inputs"]["sigmas"] = ["81", 0]
    graph["82"] = node("DisableNoise")
    graph["83"] = node(
        "SamplerCustomAdvanced",
        noise=("82", 0),
        guider=("30", 0),
        sampler=("32", 0),
        sigmas=("81", 1),
        latent_image=(SAMPLER, 0),
    )
    graph[SAVE]["inputs"]["samples"] = ["83", 0]
    assert relative(saved_latents(host, host.run(graph)), wanted) < 1e-5


def test_low_denoise_keeps_the_clip_as_core_does(host):
    """Below the boundary the guider is one expert: CFGGuider on it is the control."""
    graph = continued(noise=("31", 0), guider=("30", 0), sampler=("32", 0), sigmas=("33", 0))
    graph["33"]["inputs"]["denoise"] = 0.2
    got = saved_latents(host, host.run(graph))
    graph["30"] = node(
        "CFGGuider", model=(LOADER, 1), positive=(ENCODE, 0), negative=(ENCODE, 1), cfg=2.0
    )
    control = saved_latents(host, host.run(graph))
    assert relative(got, control) < 1e-5
    graph["30"] = advanced("euler", switch="auto")["30"]
    graph["80"]["inputs"]["latent_image"] = [EMPTY, 0]
    assert relative(saved_latents(host, host.run(graph)), got) > 0.05


def noted(host, graph):
    graph["20"] = node("PreviewAny", source=(SAMPLER, 1))
    before = len(host.log.read_text())
    outputs = host.run(graph)
    return outputs["20"]["text"][0], host.log.read_text()[before:], outputs


def test_a_clip_that_is_not_used_is_told(host):
    """The one-node sampler starts from pure noise: a clip without a mask changes nothing."""
    graph = base_graph(noise_seed=300)
    graph["84"] = node("WanProbeLatent", latent=(EMPTY, 0), value=1.5)
    graph[SAMPLER]["inputs"]["latent_image"] = ["84", 0]
    plan, log, outputs = noted(host, graph)
    told = "what is in latent_image is not used"
    assert told in plan
    assert log.count(told) == 1
    plain = base_graph(noise_seed=300)
    plan, log, wanted = noted(host, plain)
    assert told not in plan + log
    assert torch.equal(saved_latents(host, outputs), saved_latents(host, wanted))


def test_a_noise_mask_keeps_the_rest_of_the_clip(host):
    graph = base_graph(noise_seed=301)
    graph["85"] = node("SolidMask", value=0.0, width=WIDTH, height=HEIGHT)
    graph["86"] = node("SolidMask", value=1.0, width=WIDTH // 2, height=HEIGHT)
    graph["87"] = node(
        "MaskComposite", destination=("85", 0), source=("86", 0), x=0, y=0, operation="add"
    )
    graph["88"] = node("SetLatentNoiseMask", samples=(SAMPLER, 0), mask=("87", 0))
    graph["89"] = {**graph[SAMPLER], "inputs": dict(graph[SAMPLER]["inputs"])}
    graph["89"]["inputs"] |= {"latent_image": ["88", 0], "noise_seed": 302}
    graph["90"] = node("SaveLatent", samples=("89", 0), filename_prefix="latents/masked")
    graph["20"] = node("PreviewAny", source=("89", 1))
    outputs = host.run(graph)
    clip, again = saved_latents(host, outputs), saved_latents(host, outputs, "90")
    left, right = slice(0, WIDTH // 16), slice(WIDTH // 16, None)
    assert relative(again[..., right], clip[..., right]) < 1e-5
    assert relative(again[..., left], clip[..., left]) > 0.05
    assert "is not used" not in outputs["20"]["text"][0]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (STEPS, f"the low noise stage runs none of the {STEPS} steps"),
        (0, f"the high noise stage runs none of the {STEPS} steps"),
        (1, ""),
    ],
)
def test_an_idle_expert_is_told(host, step, told):
    graph = base_graph(noise_seed=303 + step, switch="step", switch_step=step)
    plan, log, _ = noted(host, graph)
    assert ("runs none of" in plan) == bool(told)
    assert told in plan
    assert told in log


def test_part_of_a_run_with_one_expert_is_no_news(host):
    before = len(host.log.read_text())
    graph = advanced("euler", switch="auto")
    graph["31"]["inputs"]["noise_seed"] = SEED + 50
    graph["33"]["inputs"]["denoise"] = 0.2
    host.run(graph)
    assert "runs none of" not in host.log.read_text()[before:]
