"""Every wrong input is told in one sentence: given, rule, way out."""

from __future__ import annotations

import re

import pytest
from wanexperts import comfy_server

from . import random_weights as files
from .graphs import (
    EMPTY,
    ENCODE,
    LOADER,
    SAMPLER,
    SAVE,
    TEXT,
    VAE,
    VIDEO,
    base_graph,
    changed,
    node,
    video_graph,
)

pytestmark = pytest.mark.comfy

BEFORE_THE_RUN = {
    "same-file-twice": (LOADER, {"model_low_noise": files.HIGH}, "was given for both experts"),
    "swapped": (
        LOADER,
        {"model_high_noise": files.LOW, "model_low_noise": files.HIGH},
        "the experts are swapped",
    ),
    "copy-of-the-other": (LOADER, {"model_low_noise": files.TWIN}, "is the other expert"),
    "two-models": (LOADER, {"model_low_noise": files.CORE_LOW}, "choose two experts of one model"),
    "missing-file": (LOADER, {"model_low_noise": "gone.safetensors"}, "gone.safetensors is not in"),
    "truncated-file": (LOADER, {"model_low_noise": files.TRUNCATED}, "truncated"),
    "foreign-file": (LOADER, {"model_high_noise": files.FOREIGN}, "is not an expert"),
    "missing-text": (TEXT, {"text_encoder": "gone.safetensors"}, "gone.safetensors is not in"),
    "missing-vae": (VAE, {"vae": "gone.safetensors"}, "gone.safetensors is not in"),
    "frames": (EMPTY, {"frames": 80}, "num_frames=80 is not 4k+1; use 77 or 81"),
    "no-frames": (EMPTY, {"frames": 0}, "frames=0 is not within 1 to 4097"),
    "width": (EMPTY, {"width": 100}, "width=100 is not a positive multiple of 16; use 96 or 112"),
    "height": (EMPTY, {"height": 8}, "height=8 is not within 16 to 8192"),
    "file-without-a-tensor": (VAE, {"vae": files.HOLED_VAE}, "1 missing (first: conv1.bias)"),
    "expert-without-a-tensor": (LOADER, {"model_low_noise": files.HOLED}, "1 missing (first: head"),
    "no-tokenizer": (TEXT, {"text_encoder": files.BARE_TEXT_FILE}, "holds no tokenizer"),
    "folder-outside": (VAE, {"vae": "/etc/"}, "/etc/ is not in the vae folders"),
    "folder-above": (VAE, {"vae": "../vae/"}, "../vae/ is not in the vae folders"),
    "file-above": (
        VAE,
        {"vae": f"../vae/{files.VAE_FILE}"},
        f"../vae/{files.VAE_FILE} is not in the vae folders",
    ),
    "wide": (EMPTY, {"width": 16_000_000}, "width=16000000 is not within 16 to 8192"),
    "long": (EMPTY, {"frames": 4_000_001}, "frames=4000001 is not within 1 to 4097"),
    "batch": (EMPTY, {"batch_size": 65}, "batch_size=65 is not within 1 to 64"),
    "steps": (SAMPLER, {"steps": 0}, "steps=0 is not within 1 to 1000"),
    "many-steps": (SAMPLER, {"steps": 2_000_000}, "steps=2000000 is not within 1 to 1000"),
    "shift": (SAMPLER, {"sigma_shift": 101.0}, "sigma_shift=101.0 is not within 0.01 to 100"),
    "no-number": (SAMPLER, {"sigma_shift": "nan"}, "sigma_shift=nan is not within"),
    "idle-boundary": (SAMPLER, {"boundary": 2.0}, "boundary=2.0 is not within 0 to 1"),
    "cfg": (SAMPLER, {"cfg_low_noise": 101.0}, "cfg_low_noise=101.0 is not within 0 to 100"),
    "switch-step": (
        SAMPLER,
        {"switch": "step", "switch_step": 7},
        "switch step=7 is not within the 6 steps",
    ),
    "boundary": (SAMPLER, {"switch": "boundary", "boundary": 875.0}, "use 0.875"),
    "snr": (SAMPLER, {"switch": "snr", "switch_value": 875.0}, "snr=875 is not a ratio within 0"),
    "timestep": (SAMPLER, {"switch": "timestep", "switch_value": 1001.0}, "timestep=1001 is not"),
    "percent": (SAMPLER, {"switch": "fraction", "switch_value": 65.0}, "use 0.65"),
    "curve": (SAMPLER, {"cfg_curve_high": "1:4; 0.5:2"}, "is neither a number nor a curve"),
    "high-curve": (SAMPLER, {"cfg_curve_low": "1:400"}, "cfg_low_noise=400.0 is not within"),
    "late-motion": (
        SAMPLER,
        {"model_motion": [LOADER, 0], "motion_until": 500.0},
        "stages with boundaries [0.5, 0.875, 0.0] are not in order",
    ),
    "switch": (SAMPLER, {"switch": "sometimes"}, "switch='sometimes' is not one of"),
    "solver": (SAMPLER, {"sampler_name": "magic"}, "unknown sampler 'magic'"),
    "schedule": (SAMPLER, {"scheduler": "magic"}, "unknown schedule 'magic'"),
    "empty-prompt": (ENCODE, {"positive": " \n "}, "the positive prompt is empty"),
    "entity-prompt": (ENCODE, {"positive": "&nbsp;"}, "the positive prompt is empty"),
    "no-file-name": (VIDEO, {"filename_prefix": ""}, "filename_prefix '' names no file"),
    "hidden-file": (VIDEO, {"filename_prefix": "video/.x"}, "'video/.x' names no file"),
    "blocked-output": (
        VIDEO,
        {"filename_prefix": "blocked/clip"},
        "cannot write filename_prefix 'blocked/clip'",
    ),
    "outside-output": (VIDEO, {"filename_prefix": "../clip"}, "leaves the output folder"),
    "fps": (VIDEO, {"fps": 0.0}, "fps=0.0 is not within 0.1 to 1000"),
}


def video_only(**sampling):
    graph = video_graph(**sampling)
    del graph[SAVE]  # a second good output would run without the bad one
    return graph


@pytest.mark.parametrize(
    ("node_id", "inputs", "sentence"), BEFORE_THE_RUN.values(), ids=BEFORE_THE_RUN
)
def test_refused_before_the_run(host, node_id, inputs, sentence):
    (host.output / "blocked").touch()
    with pytest.raises(comfy_server.Refused) as caught:
        host.run(changed(video_only(noise_seed=1000), node_id, **inputs))
    errors = caught.value.answer["node_errors"][node_id]["errors"]
    told = " ".join(f"{e['message']} {e['details']}" for e in errors)
    assert re.search(re.escape(sentence), told), told


@pytest.mark.parametrize(
    ("motion", "place", "boundaries"),
    [
        (300.0, {"switch": "boundary", "boundary": 0.5}, "[0.3, 0.5, 0.0]"),
        (860.0, {"switch": "timestep", "switch_value": 900.0}, "[0.86, 0.9, 0.0]"),
        (860.0, {"switch": "snr", "switch_value": 0.0}, "[0.86, 1.0, 0.0]"),
    ],
    ids=["boundary", "timestep", "snr"],
)
def test_a_guider_whose_motion_ends_too_late_is_refused_before_the_run(
    host, motion, place, boundaries
):
    from .test_on_host_interop import advanced

    graph = advanced("euler", model_motion=(LOADER, 0), motion_until=motion, **place)
    with pytest.raises(comfy_server.Refused) as caught:
        host.run(graph)
    (problem,) = caught.value.answer["node_errors"]["30"]["errors"]
    told = f"{problem['message']} {problem['details']}"
    assert f"stages with boundaries {boundaries} are not in order; put the high-noise stage" in told


def test_a_guider_whose_motion_cannot_be_compared_yet_is_not_refused(host):
    """The sigmas decide where these switch, and say so in the run."""
    from .test_on_host_interop import advanced

    given = {"model_motion": (LOADER, 0), "motion_until": 300.0}
    for place in ({"switch": "auto"}, {"switch": "step", "switch_step": 2}):
        with pytest.raises(comfy_server.HostError, match="are not in order") as caught:
            host.run(advanced("euler", **given, **place))
        assert not isinstance(caught.value, comfy_server.Refused)


def test_a_refused_pair_runs_on_demand(host):
    """What would refuse it is the first thing in the report, with the cards of both files."""
    graph = base_graph(noise_seed=1005)
    graph[LOADER]["inputs"] |= {"model_high_noise": files.LOW, "model_low_noise": files.HIGH}
    graph["20"] = node("PreviewAny", source=(LOADER, 2))
    with pytest.raises(comfy_server.Refused, match="exchange the files, or turn on allow_mismatch"):
        host.run(graph)
    graph[LOADER]["inputs"]["allow_mismatch"] = True
    lines = host.run(graph)["20"]["text"][0].splitlines()
    assert lines[0].startswith("WARNING: the experts are swapped")
    assert f"{files.LOW}: Wan2.2 text-to-video expert, low noise by its header" in lines
    assert f"{files.HIGH}: Wan2.2 text-to-video expert, high noise by its header" in lines


def same_model(graph):
    graph[SAMPLER]["inputs"]["model_low_noise"] = [LOADER, 0]


def other_text_width(graph):
    graph[TEXT]["inputs"]["text_encoder"] = files.CORE_TEXT_FILE


def image_latents(graph):
    graph[EMPTY] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph[VIDEO]["inputs"]["samples"] = [EMPTY, 0]


def odd_size(graph):
    graph[EMPTY] = node("EmptyHunyuanLatentVideo", width=72, height=64, length=5, batch_size=1)


def two_clips(graph):
    graph[EMPTY]["inputs"]["batch_size"] = 2
    graph[VIDEO]["inputs"]["samples"] = [EMPTY, 0]


DURING_THE_RUN = {
    "same-model": (same_model, "are the same MODEL"),
    "text-width": (other_text_width, "text of width 4096 does not fit"),
    "latents": (image_latents, "do not fit this VAE, which has 16 channels"),
    "odd-size": (odd_size, "width=72 is not a positive multiple of 16"),
    "two-clips": (two_clips, "the latents hold 2 clips"),
}


@pytest.mark.parametrize(("change", "sentence"), DURING_THE_RUN.values(), ids=DURING_THE_RUN)
def test_refused_in_the_run(host, change, sentence):
    graph = video_only(noise_seed=1001)
    change(graph)
    with pytest.raises(comfy_server.HostError, match=sentence):
        host.run(graph)


def test_step_outside_the_sigmas_of_another_node(host):
    from .test_on_host_interop import advanced

    with pytest.raises(comfy_server.HostError, match="switch step=9 is not within the 5 steps"):
        host.run(advanced("euler", switch="step", switch_step=9))


def test_a_linked_value_has_the_same_limits(host):
    if "PrimitiveInt" not in host.get("/object_info"):
        pytest.skip(f"ComfyUI {host.version} has no PrimitiveInt node")
    graph = base_graph(noise_seed=1003)
    graph["70"] = node("PrimitiveInt", value=5000)
    graph[SAMPLER]["inputs"]["steps"] = ["70", 0]
    with pytest.raises(comfy_server.HostError, match="steps=5000 is not within 1 to 1000"):
        host.run(graph)


def test_no_expert_is_loaded_for_a_text_it_cannot_read(host):
    host.post("/free", {"unload_models": True})
    before = len(host.log.read_text())
    graph = base_graph(noise_seed=1004)
    other_text_width(graph)
    with pytest.raises(comfy_server.HostError, match="which read 64"):
        host.run(graph)
    assert "Requested to load HostModel" not in host.log.read_text()[before:]


def test_a_good_run_follows_a_bad_one(host):
    assert host.run(base_graph(noise_seed=1002))
