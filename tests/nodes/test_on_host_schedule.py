"""Wan Sigmas and Wan Solver in ComfyUI's own sampling nodes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from wanexperts.comfy_server import Refused
from wanexperts.wan.schedule import make_schedule
from wanexperts.wan.solvers import SOLVERS

from . import random_weights as files
from .graphs import (
    EMPTY,
    ENCODE,
    LOADER,
    SAMPLER,
    SAMPLING,
    SEED,
    STEPS,
    base_graph,
    changed,
    node,
    saved_latents,
)
from .test_on_host_run import library_latents, relative

pytestmark = pytest.mark.comfy
GUIDER, NOISE, SOLVER, SIGMAS = "30", "31", "32", "33"
SHIFT = SAMPLING["sigma_shift"]
PLAIN = make_schedule("shifted", steps=STEPS, shift=SHIFT)


def wan_sigmas(**inputs):
    given = {
        "scheduler": "unipc", "steps": STEPS, "sigma_shift": SHIFT, "switch": "auto",
        "boundary": 0.875, "switch_step": 3, "switch_value": 875.0, "timesteps": "",
    }  # fmt: skip
    return node("WanExpertsSchedule", **{**given, **inputs})


def core_sampler(**links):
    given = {
        "noise": (NOISE, 0), "guider": (GUIDER, 0), "sampler": (SOLVER, 0),
        "sigmas": (SIGMAS, 0), "latent_image": (EMPTY, 0),
    }  # fmt: skip
    return node("SamplerCustomAdvanced", **{**given, **links})


def assembled(solver, **sigmas):
    """Our guider, solver and sigmas in the core sampler."""
    graph = base_graph()
    names = ["cfg_high_noise", "cfg_low_noise", "sigma_shift", "switch", "boundary", "switch_step"]
    names.append("resume")
    graph[GUIDER] = node(
        "WanExpertsGuider",
        model_high_noise=(LOADER, 0),
        model_low_noise=(LOADER, 1),
        positive=(ENCODE, 0),
        negative=(ENCODE, 1),
        **{name: SAMPLING[name] for name in names},
    )
    graph[NOISE] = node("RandomNoise", noise_seed=SEED)
    graph[SOLVER] = node("WanExpertsSolver", sampler_name=solver)
    graph[SIGMAS] = wan_sigmas(**sigmas)
    graph[SAMPLER] = core_sampler()
    return graph


@pytest.mark.parametrize(
    ("solver", "sigmas", "library"),
    [
        ("unipc", {}, {"schedule": "unipc"}),
        ("dpm++", {"scheduler": "dpm++"}, {"schedule": "dpm++"}),
        ("heun", {"scheduler": "shifted"}, {"schedule": "shifted"}),
        (
            "euler",
            {"scheduler": "lightning", "steps": 4},
            {"schedule": "lightning", "steps": 4},
        ),
        (
            "unipc",
            {"scheduler": "list", "timesteps": ", ".join(map(str, PLAIN.timesteps.tolist()))},
            {"schedule": "shifted"},
        ),
    ],
    ids=["unipc", "dpm++", "shifted-heun", "lightning", "list"],
)
def test_the_pieces_make_the_run_of_the_library(host, random_models, solver, sigmas, library):
    got = saved_latents(host, host.run(assembled(solver, **sigmas)))
    wanted = library_latents(random_models, solver=solver, **library)
    assert relative(got, wanted) < 1e-5


def test_whole_timesteps_reach_the_network_of_what_is_cut_out_of_sigmas(host):
    """The levels of the DPM++ grid are those of the plain one; Euler has no history to lose."""
    graph = assembled("euler", scheduler="dpm++")
    whole = saved_latents(host, host.run(graph))
    plain = saved_latents(host, host.run(changed(graph, SIGMAS, scheduler="shifted")))
    told = relative(plain, whole)
    graph["34"] = node("SplitSigmas", sigmas=(SIGMAS, 0), step=2)
    graph["35"] = node("DisableNoise")
    graph["36"] = core_sampler(sigmas=("34", 0))
    graph[SAMPLER] = core_sampler(noise=("35", 0), sigmas=("34", 1), latent_image=("36", 0))
    parts = relative(saved_latents(host, host.run(graph)), whole)
    assert parts < 1e-5 < 1e-4 < told


def test_sigmas_bring_their_shift(host, random_models):
    """What the guider was told of another shift does not touch the run."""
    graph = changed(assembled("unipc"), GUIDER, sigma_shift=12.0)
    before = len(host.log.read_text())
    got = saved_latents(host, host.run(graph))
    assert relative(got, library_latents(random_models)) < 1e-5
    log = host.log.read_text()[before:]
    assert f"the sigmas were made with shift {SHIFT:g}; sigma_shift is not used" in log


def core_schedulers(host):
    return host.get("/object_info/BasicScheduler")["BasicScheduler"]["input"]["required"][
        "scheduler"
    ]


def test_every_core_scheduler_gives_the_sigmas_of_core(host):
    kind, *rest = core_schedulers(host)
    names = kind if isinstance(kind, list) else rest[0]["options"]
    ours = host.get("/object_info/WanExpertsSchedule")["WanExpertsSchedule"]["input"]
    offered = ours["required"]["scheduler"][1].get("options") or ours["required"]["scheduler"][0]
    assert len(names) >= 9
    assert set(names) <= set(offered)
    for name in names:
        graph = assembled("euler", scheduler=name, steps=5)
        got = saved_latents(host, host.run(graph))
        graph["34"] = node("ModelSamplingSD3", model=(LOADER, 0), shift=SHIFT)
        graph[SIGMAS] = node(
            "BasicScheduler", model=("34", 0), scheduler=name, steps=5, denoise=1.0
        )
        assert torch.equal(saved_latents(host, host.run(graph)), got), name


def core_loaded(solver):
    """A core-loaded model in the core guider, over our sigmas."""
    graph = assembled(solver, scheduler="shifted", model=(LOADER, 0))
    graph[LOADER] = node("UNETLoader", unet_name=files.CORE_HIGH, weight_dtype="default")
    graph["2"]["inputs"]["text_encoder"] = files.CORE_TEXT_FILE
    graph[GUIDER] = node(
        "CFGGuider", model=(LOADER, 0), positive=(ENCODE, 0), negative=(ENCODE, 1), cfg=2.0
    )
    return graph


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_run_on_core_models_in_the_core_guider(host, solver):
    graph = core_loaded(solver)
    got = saved_latents(host, host.run(graph))
    assert torch.isfinite(got).all()
    core = changed(graph, SAMPLER)
    core[SOLVER] = node("KSamplerSelect", sampler_name=solver if solver == "heun" else "euler")
    difference = relative(saved_latents(host, host.run(core)), got)
    if solver in ("euler", "heun"):
        assert difference < 1e-5
    else:
        assert difference > 1e-4, "another solver, another clip"


def test_lcm_adds_the_noise_of_the_seed(host):
    graph = core_loaded("lcm")
    first = saved_latents(host, host.run(graph))
    other = saved_latents(host, host.run(changed(graph, NOISE, noise_seed=SEED + 1)))
    again = changed(graph, "8", filename_prefix="latents/again")
    assert torch.equal(saved_latents(host, host.run(again)), first)
    assert relative(other, first) > 0.1


def shown(host, **inputs):
    """Picture, summary and switch step of Wan Sigmas."""
    graph = base_graph()
    graph = {LOADER: graph[LOADER], SIGMAS: wan_sigmas(**inputs)}
    graph["40"] = node("SaveImage", images=(SIGMAS, 2), filename_prefix="plot")
    graph["41"] = node("PreviewAny", source=(SIGMAS, 3))
    graph["42"] = node("PreviewAny", source=(SIGMAS, 1))
    outputs = host.run(graph)
    with Image.open(host.path(outputs["40"]["images"][0])) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=int)
    return pixels, outputs["41"]["text"][0], int(outputs["42"]["text"][0])


def test_the_picture_shows_each_expert_in_its_colour(host):
    pixels, summary, switch = shown(host, steps=40, sigma_shift=12.0, model=(LOADER, 0))
    assert switch == 26
    assert "26 high noise, 14 low noise" in summary
    assert "boundary 0.8750, SNR 0.02041 (-16.9 dB), timestep 875.0" in summary
    assert "timesteps: 999, 997, 995, 993" in summary
    # Along a line low in the plot lie two veils; the warm one ends where the 27th step begins.
    row = pixels[-120]
    warm, cold = row[:, 0] > row[:, 2] + 8, row[:, 2] > row[:, 0] + 8
    assert np.flatnonzero(warm).max() < np.flatnonzero(cold).min()
    assert warm.sum() / (warm | cold).sum() == pytest.approx(26 / 40, abs=0.01)
    bright = pixels.max(axis=2) > 200
    assert bright.any(axis=0)[:-40].sum() > 0.8 * pixels.shape[1], "a curve across the picture"


@pytest.mark.parametrize(
    ("inputs", "steps"),
    [
        ({"switch": "step", "switch_step": 1}, 1),
        ({"switch": "fraction", "switch_value": 0.5}, 3),
        ({"switch": "timestep", "switch_value": 950.0}, 2),
        ({"switch": "boundary", "boundary": 0.5}, 5),
        ({"scheduler": "lcm", "steps": 3}, 1),
        ({"scheduler": "beta", "sigma_shift": 5.0}, 3),
    ],
)
def test_switch_step_counts_the_steps_of_the_high_expert(host, inputs, steps):
    _, summary, switch = shown(host, **inputs)
    assert switch == steps
    assert f": {steps} high noise" in summary


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"scheduler": "lightning"}, "steps=6 does not fit the lightning schedule; use its 4 steps"),
        ({"scheduler": "lcm"}, "steps=6 does not fit the lcm schedule; use its 3 steps"),
        ({"scheduler": "list", "timesteps": "500, 750"}, "timestep 750 of the list comes after 500"),
        ({"scheduler": "list", "timesteps": "a b"}, "the list 'a b' holds what is not a number"),
        ({"scheduler": "nonsense"}, "unknown scheduler 'nonsense'; use one of unipc, dpm++, shifted, lightning, lcm, list, simple"),
        ({"switch": "step", "switch_step": 7}, "switch step=7 is not within the 6 steps"),
    ],
)  # fmt: skip
def test_bad_numbers_are_refused_before_the_run(host, inputs, sentence):
    with pytest.raises(Refused, match="failed validation") as refusal:
        shown(host, **inputs)
    assert sentence in str(refusal.value)
