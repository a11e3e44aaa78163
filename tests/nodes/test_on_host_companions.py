"""Core nodes around our MODEL and CLIP: LoRA, caches, sampling patches, image conditioning, text."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from wanexperts.wan.checkpoint import load_transformer
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import Schedule
from wanexperts.wan.solvers import get_solver

from . import random_weights as files
from .graphs import (
    EMPTY,
    ENCODE,
    LOADER,
    NEGATIVE,
    PROMPT,
    SAMPLER,
    SEED,
    TEXT,
    base_graph,
    node,
    saved_latents,
)
from .test_on_host_interop import STEPS, advanced, contexts, noise, raw, simple_sigmas
from .test_on_host_run import relative

pytestmark = pytest.mark.comfy


def run_and_log(host, graph):
    before = len(host.log.read_text())
    latents = saved_latents(host, host.run(graph))
    return latents, host.log.read_text()[before:]


def through(graph, slot, patch):
    """Put ``patch`` between the loader and one model input of the sampler or guider."""
    user = SAMPLER if slot in graph[SAMPLER]["inputs"] else "30"
    key = f"patched {slot}"
    patch["inputs"]["model"] = graph[user]["inputs"][slot]
    graph[key] = patch
    graph[user]["inputs"][slot] = [key, 0]
    return graph


def ksampler(**inputs):
    given = {
        "model": (LOADER, 0),
        "seed": SEED,
        "steps": STEPS,
        "cfg": 1.0,
        "sampler_name": "euler",
        "scheduler": "simple",
        "positive": (ENCODE, 0),
        "negative": (ENCODE, 1),
        "latent_image": (EMPTY, 0),
        "denoise": 1.0,
    }
    graph = base_graph()
    graph[SAMPLER] = node("KSampler", **{**given, **inputs})
    return graph


def test_a_lora_of_the_core_loader(host, random_models):
    graph, plain = ksampler(), ksampler()
    for each in (graph, plain):
        each[LOADER]["inputs"]["model_high_noise"] = files.FP32_HIGH
    loader = node("LoraLoaderModelOnly", lora_name=files.LORA, strength_model=0.7)
    got = saved_latents(host, host.run(through(graph, "model", loader)))
    lora = load_file(random_models / files.LORAS / files.LORA)
    path = random_models / files.DIFFUSION_MODELS / files.FP32_HIGH
    expert, text = load_transformer(path), contexts(random_models)[0]
    for name in files.LORA_LAYERS:
        down, up = (lora[f"diffusion_model.{name}.lora_{side}.weight"] for side in ("down", "up"))
        expert.get_submodule(name).weight.data += 0.7 * up @ down

    @torch.no_grad()
    def velocity(x, sigma):
        return expert(x, torch.tensor([1000 * sigma]), text)

    sigmas = simple_sigmas(12.0)
    schedule = Schedule(name="simple", sigmas=sigmas, timesteps=sigmas[:-1].double() * 1000)
    wanted = raw(random_models, sample(velocity, noise(), schedule, get_solver("euler")))
    assert relative(got, wanted) < 1e-5
    assert relative(saved_latents(host, host.run(plain)), got) > 1e-3


@pytest.mark.parametrize("patched", [["low"], ["high"], ["high", "low"]], ids="+".join)
def test_easycache_skips_steps_of_the_expert_it_is_on(host, patched):
    graph = base_graph(noise_seed=400, steps=20, sigma_shift=12.0)
    for role in patched:
        cache = node(
            "EasyCache", reuse_threshold=1.0, start_percent=0.0, end_percent=1.0, verbose=False
        )
        through(graph, f"model_{role}_noise", cache)
    _, log = run_and_log(host, graph)
    skipped = [
        int(line.split("skipped ")[1].split("/")[0])
        for line in log.splitlines()
        if "EasyCache - skipped" in line
    ]
    assert len(skipped) == len(patched)
    assert all(skipped), log


def test_a_patch_around_the_sampler_belongs_on_the_high_expert(host):
    told = "a patch around the sampler on the MODEL of the low noise stage does not run"
    plain = saved_latents(host, host.run(base_graph(noise_seed=401)))
    for role, runs in (("high", True), ("low", False)):
        patch = node("WanProbePatch", kind="sampler")
        graph = through(base_graph(noise_seed=401), f"model_{role}_noise", patch)
        latents, log = run_and_log(host, graph)
        assert torch.equal(latents, plain) != runs
        assert log.count(told) == (0 if runs else 1)


def test_a_run_wrapper_is_given_its_own_expert(host):
    """And what it changes stays with the expert that starts, or it would happen twice."""
    plain = saved_latents(host, host.run(base_graph(noise_seed=402)))
    patch = node("WanProbePatch", kind="run")
    graph = through(base_graph(noise_seed=402), "model_low_noise", patch)
    latents, log = run_and_log(host, graph)
    assert "probe: run wrapper, own expert True" in log
    assert torch.equal(latents, plain)


@pytest.mark.parametrize("kind", ["sampler", "guider"])
def test_a_sampling_patch_is_told_when_it_is_not_used(host, kind):
    def graph(shift):
        made = base_graph(noise_seed=403) if kind == "sampler" else advanced("euler")
        if shift is not None:
            patch = node("ModelSamplingSD3", shift=shift)
            through(made, "model_low_noise", patch)
        return made

    own = 5.0 if kind == "sampler" else 12.0
    told = (
        f"a sampling patch of shift 3 on a MODEL is not used; sigma_shift {own:g} of this node is"
    )
    plain, log = run_and_log(host, graph(None))
    assert "is not used" not in log
    patched, log = run_and_log(host, graph(3.0))
    assert log.count(told) == 1
    assert torch.equal(patched, plain)
    _, log = run_and_log(host, graph(own))
    assert "is not used" not in log


def test_image_conditioning_is_ignored_and_told_once(host):
    plain = saved_latents(host, host.run(ksampler(cfg=2.0)))
    graph = ksampler(cfg=2.0)
    for slot, role in enumerate(("positive", "negative")):
        graph[role] = node("WanProbeImageConditioning", conditioning=(ENCODE, slot))
        graph[SAMPLER]["inputs"][role] = [role, 0]
    latents, log = run_and_log(host, graph)
    assert torch.equal(latents, plain)
    told = (
        "ignores clip_vision_output, time_dim_concat, reference_latents, concat_latent_image of "
        "the conditioning"
    )
    assert log.count(told) == 1


def test_auto_divides_foreign_image_experts_at_their_own_level(host):
    for high, low, told in (
        (files.CORE_HIGH, files.CORE_LOW, "boundary 0.8750"),
        (files.IMAGE_HIGH, files.IMAGE_LOW, "boundary 0.9000"),
    ):
        graph = base_graph(noise_seed=404)
        graph[LOADER] = node("UNETLoader", unet_name=high, weight_dtype="default")
        graph["40"] = node("UNETLoader", unet_name=low, weight_dtype="default")
        graph[SAMPLER]["inputs"]["model_low_noise"] = ["40", 0]
        graph[TEXT]["inputs"]["text_encoder"] = files.CORE_TEXT_FILE
        graph["20"] = node("PreviewAny", source=(SAMPLER, 1))
        assert told in host.run(graph)["20"]["text"][0]


def test_clip_skip_changes_nothing(host):
    plain = saved_latents(host, host.run(base_graph(noise_seed=405)))
    graph = base_graph(noise_seed=405)
    graph["skip"] = node("CLIPSetLastLayer", clip=(TEXT, 0), stop_at_clip_layer=-2)
    graph[ENCODE]["inputs"]["clip"] = ["skip", 0]
    assert torch.equal(saved_latents(host, host.run(graph)), plain)


def test_a_core_clip_feeds_our_nodes(host):
    """ComfyUI's own umT5 over the same weights: the classes of CLIPLoader, in a small size."""
    ours = base_graph(noise_seed=406)
    core = base_graph(noise_seed=406)
    core[TEXT] = node("WanProbeClip", weights=files.HF_TEXT_FILE, tokenizer=files.TEXT_FILE)
    wanted, got = (saved_latents(host, host.run(graph)) for graph in (ours, core))
    assert relative(got, wanted) < 1e-4
    other = base_graph(noise_seed=406)
    other[ENCODE]["inputs"] |= {"positive": NEGATIVE, "negative": PROMPT}
    assert relative(saved_latents(host, host.run(other)), wanted) > 1e-3


def test_a_negative_prompt_that_cleans_to_nothing_is_the_official_one(host):
    results = []
    for negative in ("", " &nbsp; ", NEGATIVE):
        graph = base_graph(noise_seed=409)
        graph[ENCODE]["inputs"]["negative"] = negative
        results.append(saved_latents(host, host.run(graph)))
    empty, entity, other = results
    assert torch.equal(entity, empty)
    assert not torch.equal(other, empty)


def test_a_linked_file_name_keeps_the_loaded_experts(host):
    graph = base_graph(noise_seed=407)
    graph["name"] = node("WanProbeName", name=files.LOW)
    graph[LOADER]["inputs"]["model_low_noise"] = ["name", 0]
    host.run(graph)
    graph[SAMPLER]["inputs"]["noise_seed"] = 408
    cached = [e["data"]["nodes"] for e in host.events(graph) if e["type"] == "execution_cached"]
    assert LOADER in cached[0]
