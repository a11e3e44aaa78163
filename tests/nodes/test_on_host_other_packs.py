"""Our MODEL takes what other packs hang onto a MODEL, and says honestly what it needs."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.attention import sdpa
from wanexperts.wan.checkpoint import load_transformer
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import Schedule
from wanexperts.wan.solvers import get_solver

from . import random_weights as files
from .graphs import EMPTY, ENCODE, LOADER, SAMPLER, SEED, VAE, base_graph, node, saved_latents
from .test_on_host_interop import STEPS, contexts, noise, raw, simple_sigmas
from .test_on_host_run import relative

pytestmark = pytest.mark.comfy


def patched_expert(models, kind):
    path = models / files.DIFFUSION_MODELS / files.HIGH
    attention = (lambda q, k, v: sdpa(q, k, v) * 0) if kind == "attention" else sdpa
    expert = load_transformer(path, dtype=torch.float32, attention=attention)
    if kind == "block":
        expert.blocks = expert.blocks[:1]
    elif kind == "weight":
        expert.blocks[0].self_attn.v.weight.data.add_(0.01)
    return expert


@pytest.mark.parametrize("kind", ["wrapper", "block", "attention", "weight"])
def test_patches_reach_the_network(host, random_models, kind):
    graph = base_graph()
    graph["60"] = node("WanProbePatch", model=(LOADER, 0), kind=kind)
    graph[SAMPLER] = node(
        "KSampler",
        model=("60", 0),
        seed=SEED,
        steps=STEPS,
        cfg=1.0,
        sampler_name="euler",
        scheduler="simple",
        positive=(ENCODE, 0),
        negative=(ENCODE, 1),
        latent_image=(EMPTY, 0),
        denoise=1.0,
    )
    got = saved_latents(host, host.run(graph))
    expert, text = patched_expert(random_models, kind), contexts(random_models)[0]
    factor = 0.5 if kind == "wrapper" else 1.0

    @torch.no_grad()
    def velocity(x, sigma):
        return expert(x, torch.tensor([1000 * sigma]), text) * factor

    sigmas = simple_sigmas(12.0)
    schedule = Schedule(name="simple", sigmas=sigmas, timesteps=sigmas[:-1].double() * 1000)
    wanted = raw(random_models, sample(velocity, noise(), schedule, get_solver("euler")))
    assert relative(got, wanted) < 1e-5


@pytest.mark.parametrize("kind", ["wrapper", "predict"])
def test_patches_stay_with_their_expert(host, kind):
    """A patch on the low-noise MODEL changes the run, and differently from one on the other."""
    results = [saved_latents(host, host.run(base_graph()))]
    for name in ("model_high_noise", "model_low_noise"):
        graph = base_graph()
        source = graph[SAMPLER]["inputs"][name]
        graph["60"] = node("WanProbePatch", model=tuple(source), kind=kind)
        graph[SAMPLER]["inputs"][name] = ["60", 0]
        results.append(saved_latents(host, host.run(graph)))
    plain, high, low = results
    assert relative(high, plain) > 0.01
    assert relative(low, plain) > 0.01
    assert relative(high, low) > 0.01


def test_memory_estimates_are_honest(host):
    graph = base_graph()
    graph["61"] = node("WanProbeMemory", model=(LOADER, 0), vae=(VAE, 0))
    graph["62"] = node("PreviewAny", source=("61", 0))
    ratios = [float(ratio) for ratio in host.run(graph)["62"]["text"][0].split()]
    assert all(1.0 <= ratio <= 1.25 for ratio in ratios), ratios
