"""``python -m wan run`` makes what the host makes of the same graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor
from wanexperts import comfy_server
from wanexperts.tests.helpers import relative
from wanexperts.wan.cli import main

from . import lora_files as loras
from . import random_weights as files
from .graphs import EMPTY, ENCODE, LOADER, SAMPLER, SAMPLING, node, saved_latents, video_graph

pytestmark = pytest.mark.comfy


FOLDER = "run_command"


@pytest.fixture
def lora_folder(host, tmp_path: Path) -> None:
    """LoRAs of our own: other tests have theirs on the same server."""
    loras.write_all(tmp_path / "made", files.EXPERT)
    place = host.base / "models" / files.LORAS / FOLDER
    shutil.copytree(tmp_path / "made" / loras.FOLDER, place, dirs_exist_ok=True)


def own(name: str) -> str:
    return name.replace(loras.FOLDER, FOLDER, 1)


def with_loras():
    graph = video_graph(noise_seed=61)
    graph["20"] = node(
        "WanExpertsLora", model_high_noise=(LOADER, 0), model_low_noise=(LOADER, 1), strict=False,
        lora_high_noise=own(loras.HIGH), lora_low_noise=own(loras.LOW), strength_high_noise=1.0,
        strength_low_noise=0.5, allow_mismatch=False,
    )  # fmt: skip
    graph[SAMPLER]["inputs"].update(model_high_noise=["20", 0], model_low_noise=["20", 1])
    return graph


def with_guider():
    graph = video_graph()
    skipped = ("noise_seed", "steps", "sampler_name", "scheduler")
    guider = {name: value for name, value in SAMPLING.items() if name not in skipped}
    graph["10"] = node(
        "WanExpertsGuider", model_high_noise=(LOADER, 0), model_low_noise=(LOADER, 1),
        positive=(ENCODE, 0), negative=(ENCODE, 1), **guider,
    )  # fmt: skip
    graph["11"] = node(
        "WanExpertsSchedule", scheduler="dpm++", steps=6, sigma_shift=5.0, switch="auto",
        boundary=0.875, switch_step=3, switch_value=875.0, timesteps="",
    )  # fmt: skip
    graph["12"] = node("WanExpertsSolver", sampler_name="dpm++")
    graph["13"] = node("RandomNoise", noise_seed=62)
    graph[SAMPLER] = node(
        "SamplerCustomAdvanced", noise=("13", 0), guider=("10", 0), sampler=("12", 0),
        sigmas=("11", 0), latent_image=(EMPTY, 0),
    )  # fmt: skip
    return graph


def tiny():
    path = comfy_server.ROOT / "workflows" / "api" / "wan_tiny_t2v.json"
    graph = json.loads(path.read_text(encoding="utf-8"))
    graph["9"] = node("SaveLatent", samples=(SAMPLER, 0), filename_prefix="latents/tiny")
    return graph


CASES = {
    "tiny": tiny,
    "loras": with_loras,
    "guider": with_guider,
    "preset": lambda: preset("20-step"),
}


def preset(name: str):
    return video_graph(noise_seed=63, preset=name)


@pytest.mark.usefixtures("lora_folder")
@pytest.mark.parametrize("case", CASES)
def test_the_latents_are_those_of_the_node(
    host, tmp_path: Path, case: str, record_property
) -> None:
    graph = CASES[case]()
    save = next(key for key, found in graph.items() if found["class_type"] == "SaveLatent")
    wanted = saved_latents(host, host.run(graph), save)
    difference = relative(run(graph, host, tmp_path), wanted)
    record_property(f"run against the node, latents, {case}", difference)
    # measured: 1.6e-6; ComfyUI adds LoRAs to bf16 weights and rounds: 8.2e-4 (docs/lora.md)
    assert difference < (3e-3 if case == "loras" else 1e-5)
    if case == "loras":
        off = run(
            graph,
            host,
            tmp_path,
            "--set",
            "strength_high_noise=0",
            "--set",
            "20.strength_low_noise=0",
        )
        assert relative(off, wanted) > 3e-2


def run(graph, host, folder: Path, *options: str) -> Tensor:
    """The latents of ``python -m wan run``."""
    path, saved = folder / "graph.json", folder / "run.latent"
    path.write_text(json.dumps(graph), encoding="utf-8")
    arguments = ["run", path, "--out", folder / "run.mp4", "--save-latents", saved,
                 "--models", host.base, "--device", "cpu"]  # fmt: skip
    assert main([*map(str, arguments), *options]) == 0
    return load_file(saved)["latent_tensor"]
