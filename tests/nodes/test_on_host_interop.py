"""Standard sockets: core nodes on our objects, our nodes on core objects."""

from __future__ import annotations

import pytest
import torch
from wanexperts.wan.checkpoint import load_text_encoder, load_transformer, load_vae
from wanexperts.wan.experts import Stage, route
from wanexperts.wan.guidance import cfg
from wanexperts.wan.noise import draw_noise
from wanexperts.wan.sampling import sample
from wanexperts.wan.schedule import Schedule, make_schedule, shift_sigma
from wanexperts.wan.shapes import latent_shape
from wanexperts.wan.solvers import get_solver
from wanexperts.wan.text import encode_prompt
from wanexperts.wan.vae import denormalize

from . import random_weights as files
from .graphs import (
    EMPTY,
    ENCODE,
    FRAMES,
    HEIGHT,
    LOADER,
    NEGATIVE,
    PROMPT,
    SAMPLER,
    SAVE,
    SEED,
    TEXT,
    VAE,
    WIDTH,
    base_graph,
    node,
    saved_latents,
)
from .test_on_host_run import relative

pytestmark = pytest.mark.comfy
STEPS = 5


def simple_sigmas(shift: float) -> torch.Tensor:
    """ComfyUI's scheduler "simple": every (1000 / steps)-th entry of its table of 1000 levels."""
    table = [shift_sigma(i / 1000, shift) for i in range(1, 1001)]
    stride = 1000 / STEPS
    return torch.tensor([*(table[-(1 + int(i * stride))] for i in range(STEPS)), 0.0])


def contexts(models, name=files.TEXT_FILE):
    encoder, tokenizer = load_text_encoder(models / files.TEXT_ENCODERS / name)
    return [
        encode_prompt(encoder, tokenizer, text, dtype=torch.float32) for text in (PROMPT, NEGATIVE)
    ]


def guided(models, name, schedule, texts, scale):
    expert = load_transformer(models / files.DIFFUSION_MODELS / name, dtype=torch.float32)

    @torch.no_grad()
    def velocity(x, sigma):
        timestep = torch.tensor([schedule.timestep(sigma)])
        return cfg(*(expert(x, timestep, text) for text in texts), scale)

    return velocity


def raw(models, latents):
    vae = load_vae(models / files.VAE / files.VAE_FILE)
    return denormalize(latents, vae.config)


def noise():
    return draw_noise((1, *latent_shape(FRAMES, HEIGHT, WIDTH, channels=16)), SEED)


def test_ksampler_samples_our_model(host, random_models):
    graph = base_graph()
    graph[SAMPLER] = node(
        "KSampler",
        model=(LOADER, 0),
        seed=SEED,
        steps=STEPS,
        cfg=2.5,
        sampler_name="euler",
        scheduler="simple",
        positive=(ENCODE, 0),
        negative=(ENCODE, 1),
        latent_image=(EMPTY, 0),
        denoise=1.0,
    )
    got = saved_latents(host, host.run(graph))
    sigmas = simple_sigmas(12.0)
    schedule = Schedule(name="simple", sigmas=sigmas, timesteps=sigmas[:-1].double() * 1000)
    velocity = guided(random_models, files.HIGH, schedule, contexts(random_models), 2.5)
    wanted = raw(random_models, sample(velocity, noise(), schedule, get_solver("euler")))
    assert relative(got, wanted) < 1e-5


def test_ksampler_is_unchanged_by_our_sampler(host):
    """Our run works on clones: the caller's MODEL keeps its own shift and timesteps."""
    graph = base_graph(sigma_shift=3.0)
    core = base_graph()
    core[SAMPLER] = node(
        "KSampler",
        model=(LOADER, 0),
        seed=SEED,
        steps=STEPS,
        cfg=2.0,
        sampler_name="euler",
        scheduler="normal",
        positive=(ENCODE, 0),
        negative=(ENCODE, 1),
        latent_image=(EMPTY, 0),
        denoise=1.0,
    )
    before = saved_latents(host, host.run(core))
    host.run(graph)
    core[SAVE]["inputs"]["filename_prefix"] = "latents/after"
    core[SAMPLER]["inputs"]["seed"] = SEED + 1
    host.run(core)
    core[SAMPLER]["inputs"]["seed"] = SEED
    assert torch.equal(saved_latents(host, host.run(core)), before)


def advanced(sampler_name: str, **guider):
    graph = base_graph()
    inputs = {
        "cfg_high_noise": 3.0,
        "cfg_low_noise": 2.0,
        "sigma_shift": 12.0,
        "switch": "auto",
        "boundary": 0.875,
        "switch_step": 2,
        "resume": "off",
    }
    graph["30"] = node(
        "WanExpertsGuider",
        model_high_noise=(LOADER, 0),
        model_low_noise=(LOADER, 1),
        positive=(ENCODE, 0),
        negative=(ENCODE, 1),
        **{**inputs, **guider},
    )
    graph["31"] = node("RandomNoise", noise_seed=SEED)
    graph["32"] = node("KSamplerSelect", sampler_name=sampler_name)
    graph["33"] = node(
        "BasicScheduler", model=(LOADER, 0), scheduler="simple", steps=STEPS, denoise=1.0
    )
    graph[SAMPLER] = node(
        "SamplerCustomAdvanced",
        noise=("31", 0),
        guider=("30", 0),
        sampler=("32", 0),
        sigmas=("33", 0),
        latent_image=(EMPTY, 0),
    )
    return graph


def test_guider_in_core_sampler_equals_the_library(host, random_models):
    got = saved_latents(host, host.run(advanced("euler", switch="step")))
    # ComfyUI's "simple" differs from the plain shifted grid by float32 roundings only.
    sigmas = simple_sigmas(12.0)
    shifted = make_schedule("shifted", steps=STEPS, shift=12.0)
    assert torch.allclose(sigmas, shifted.sigmas, atol=1e-6)
    schedule = Schedule(name="simple", sigmas=sigmas, timesteps=shifted.timesteps)
    texts = contexts(random_models)
    boundary = (sigmas[1] + sigmas[2]).item() / 2
    stages = [
        Stage(
            name=name,
            boundary=level,
            velocity=guided(random_models, name, schedule, texts, scale),
        )
        for name, level, scale in ((files.HIGH, boundary, 3.0), (files.LOW, 0.0, 2.0))
    ]
    wanted = raw(
        random_models, sample(route(stages, schedule), noise(), schedule, get_solver("euler"))
    )
    assert relative(got, wanted) < 1e-5


def test_official_sigmas_get_official_timesteps(host, random_models):
    """The guider knows the UniPC grid by its levels; the network is then told whole timesteps."""
    graph = advanced("euler", switch="step", sigma_shift=5.0)
    official = make_schedule("unipc", steps=STEPS, shift=5.0)
    levels = ", ".join(f"{level:.9g}" for level in official.sigmas.tolist())
    graph["33"] = node("WanProbeSigmas", sigmas=levels)
    got = saved_latents(host, host.run(graph))
    sampling = {"sampler_name": "euler", "steps": STEPS, "switch": "step", "switch_step": 2}
    wanted = saved_latents(host, host.run(base_graph(**sampling)))
    assert relative(got, wanted) < 1e-5


def test_the_high_expert_does_not_come_back(host, random_models):
    """Weights change hands once, whatever levels a sampler looks at."""
    graph = advanced("euler")
    graph["32"] = node("WanProbeSampler")
    got = saved_latents(host, host.run(graph))
    levels = torch.tensor([1.0, 0.5, 0.0])
    schedule = Schedule(name="any", sigmas=levels, timesteps=levels[:-1].double() * 1000)
    start = noise()
    low = guided(random_models, files.LOW, schedule, contexts(random_models), 2.0)
    wanted = raw(random_models, start - 0.95 * low(start, 0.95))
    assert relative(got, wanted) < 1e-5


def test_a_cached_guider_runs_again_as_the_first_time(host):
    graph = advanced("uni_pc")
    first = saved_latents(host, host.run(graph))
    for seed in (SEED + 1, SEED):
        graph["31"]["inputs"]["noise_seed"] = seed
        again = saved_latents(host, host.run(graph))
    assert torch.equal(again, first)


CORE_SAMPLERS = (
    "euler", "euler_ancestral", "euler_cfg_pp", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_sde",
    "lcm", "ddim", "deis", "res_multistep", "uni_pc", "uni_pc_bh2",
)  # fmt: skip


@pytest.mark.parametrize("sampler_name", CORE_SAMPLERS)
def test_guider_runs_under_core_samplers(host, sampler_name):
    graph = advanced(sampler_name)
    graph["31"]["inputs"]["noise_seed"] = SEED + 100
    seen, outputs = [], {}
    for event in host.events(graph):
        if event["type"] == "progress" and event["data"]["node"] == SAMPLER:
            seen.append(event["data"])
        elif event["type"] == "executed":
            outputs[event["data"]["node"]] = event["data"]["output"]
    values = [data["value"] for data in seen]
    assert event["type"] == "execution_success"
    assert {data["max"] for data in seen} == {STEPS}
    assert values[-1] == STEPS
    assert values == sorted(values)
    latents = saved_latents(host, outputs)
    assert torch.isfinite(latents).all()
    assert latents.std() > 0.1


def core_pair(loader_nodes):
    graph = base_graph()
    graph |= loader_nodes
    graph[TEXT]["inputs"]["text_encoder"] = files.CORE_TEXT_FILE
    return graph


def test_core_loaded_models_run_in_our_sampler(host):
    ours = core_pair(
        {
            LOADER: node(
                "WanExpertsLoader",
                model_high_noise=files.CORE_HIGH,
                model_low_noise=files.CORE_LOW,
            )
        }
    )
    core = core_pair(
        {
            LOADER: node("UNETLoader", unet_name=files.CORE_HIGH, weight_dtype="default"),
            "40": node("UNETLoader", unet_name=files.CORE_LOW, weight_dtype="default"),
        }
    )
    core[SAMPLER]["inputs"]["model_low_noise"] = ["40", 0]
    wanted, got = (saved_latents(host, host.run(graph)) for graph in (ours, core))
    assert relative(got, wanted) < 1e-4


def decode_and_encode(decode: dict[str, object]):
    graph = base_graph()
    graph["50"] = decode
    graph["51"] = node("VAEEncode", pixels=("50", 0), vae=(VAE, 0))
    graph[SAVE]["inputs"]["samples"] = ["51", 0]
    return graph


def library_round_trip(host, models, decoder=None):
    latents = saved_latents(host, host.run(base_graph()))
    own = models / files.VAE / files.VAE_FILE
    encoder, decoder = (load_vae(path, dtype=torch.float32) for path in (own, decoder or own))
    with torch.no_grad():
        return encoder.encode(decoder.decode(latents))


@pytest.mark.parametrize(
    "decode",
    [
        node("VAEDecode", samples=(SAMPLER, 0), vae=(VAE, 0)),
        node(
            "VAEDecodeTiled",
            samples=(SAMPLER, 0),
            vae=(VAE, 0),
            tile_size=64,
            overlap=0,
            temporal_size=8,
            temporal_overlap=4,
        ),
        node("WanExpertsDecode", samples=(SAMPLER, 0), vae=(VAE, 0)),
    ],
    ids=["VAEDecode", "VAEDecodeTiled", "WanExpertsDecode"],
)
def test_our_vae_in_core_nodes(host, random_models, decode):
    got = saved_latents(host, host.run(decode_and_encode(decode)))
    assert relative(got, library_round_trip(host, random_models)) < 1e-4


def test_core_vae_in_our_decode(host, random_models):
    name, folder = files.VAE_FILE, host.base / "models" / files.VAE
    if host.version.startswith("0.3."):  # its VAELoader takes only the published width
        name = files.write_wide_vae(folder)
    graph = decode_and_encode(node("WanExpertsDecode", samples=(SAMPLER, 0), vae=("52", 0)))
    graph["52"] = node("VAELoader", vae_name=name)
    got = saved_latents(host, host.run(graph))
    wanted = library_round_trip(host, random_models, folder / name)
    assert relative(got, wanted) < 1e-4


def test_core_text_encode_on_our_clip(host):
    ours = saved_latents(host, host.run(base_graph()))
    graph = base_graph()
    graph[SAVE]["inputs"]["filename_prefix"] = "latents/core_text"
    for role, text in (("positive", PROMPT), ("negative", NEGATIVE)):
        graph[role] = node("CLIPTextEncode", clip=(TEXT, 0), text=text)
        graph[SAMPLER]["inputs"][role] = [role, 0]
    assert torch.equal(saved_latents(host, host.run(graph)), ours)


def test_batch_makes_one_clip_per_noise(host):
    graph = base_graph()
    graph[EMPTY]["inputs"]["batch_size"] = 2
    clips = saved_latents(host, host.run(graph))
    assert clips.shape[0] == 2
    one = saved_latents(host, host.run(base_graph()))
    assert relative(clips[:1], one) < 1e-5
    assert relative(clips[1:], one) > 0.1
