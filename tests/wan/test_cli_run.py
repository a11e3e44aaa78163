"""``python -m wan run``: the graph's settings reach the pipeline, and what only ComfyUI can do is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from safetensors.torch import load_file
from wanexperts.wan.checkpoint import find_parts
from wanexperts.wan.cli import kernels as command
from wanexperts.wan.cli import main
from wanexperts.wan.guidance import Guidance
from wanexperts.wan.pipeline import Kernels, Phase, Pipeline, Plan, Request
from wanexperts.wan.switch import Switch

ROOT = Path(__file__).resolve().parents[2]
UI, API = (ROOT / "workflows" / folder / "wan_tiny_t2v.json" for folder in (".", "api"))
SAMPLER = {"steps": 3, "sampler_name": "euler", "scheduler": "shifted", "sigma_shift": 4.0,
           "switch": "step", "switch_step": 1, "cfg_high_noise": 3.0, "noise_seed": 2**60 + 1}  # fmt: skip


def graph(**sampler: Any) -> dict[str, Any]:
    """The tiny API graph, small, with other inputs on its sampler."""
    given: dict[str, Any] = json.loads(API.read_text(encoding="utf-8"))
    given["5"]["inputs"].update(width=32, height=32, frames=5)
    given["6"]["inputs"].update(SAMPLER | sampler)
    return given


def guided(**guider: Any) -> dict[str, Any]:
    """The same run with Wan Experts Guider and SamplerCustomAdvanced."""
    given = graph()
    wired = ("model_high_noise", "model_low_noise", "positive", "negative", "sigma_shift", "switch",
             "boundary", "switch_step", "cfg_high_noise", "cfg_low_noise")  # fmt: skip
    inputs = given["6"]["inputs"]

    def api(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    given["10"] = api("WanExpertsGuider", **{name: inputs[name] for name in wired}, **guider)
    given["11"] = api(
        "WanExpertsSchedule", scheduler="shifted", steps=3, sigma_shift=4.0, timesteps=""
    )
    given["12"] = api("WanExpertsSolver", sampler_name="euler")
    given["13"] = api("RandomNoise", noise_seed=2**60 + 1)
    given["6"] = api("SamplerCustomAdvanced", guider=["10", 0], sigmas=["11", 0], sampler=["12", 0],
                     noise=["13", 0], latent_image=["5", 0])  # fmt: skip
    return given


def run(folder: Path, given: Any, *options: object) -> int:
    path = folder / "graph.json"
    path.write_text(json.dumps(given), encoding="utf-8")
    saved = folder / "run.latent"
    arguments = ["run", path, "--out", folder / "out.mp4", "--save-latents", saved, *options]
    return main([str(argument) for argument in arguments])


def wanted(**changes: Any) -> torch.Tensor:
    """The same run, asked of the pipeline by hand."""
    pipeline = Pipeline.load(**find_parts(), device="cpu")
    sampling = replace(
        pipeline.defaults, steps=3, solver="euler", schedule="shifted", shift=4.0, num_frames=5,
        height=32, width=32, guidance_high=3.0, negative_prompt="",
    )  # fmt: skip
    request = Request(
        prompt="a red circle moves left on a white background", sampling=sampling, seed=2**60 + 1,
        switch=Switch("step", 1),
    )  # fmt: skip
    return pipeline.sample(replace(request, **changes))


def test_a_graph_runs_as_the_pipeline_does_and_brings_itself_back(tmp_path: Path) -> None:
    assert run(tmp_path, graph()) == 0
    latents = load_file(tmp_path / "run.latent")["latent_tensor"]
    assert torch.equal(latents, wanted())
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == 8
        prompt = json.loads(container.metadata["prompt"])
        assert {i: n["inputs"] for i, n in prompt.items()} == {
            i: n["inputs"] for i, n in graph().items()
        }
        assert "workflow" not in container.metadata


def test_a_guider_with_core_sampling_is_the_same_run(tmp_path: Path) -> None:
    assert run(tmp_path, guided()) == 0
    assert torch.equal(load_file(tmp_path / "run.latent")["latent_tensor"], wanted())


@pytest.mark.parametrize("through_node", [False, True])
def test_the_compiling_node_does_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, through_node: bool
) -> None:
    given = graph()
    if through_node:
        models = {
            name: given["6"]["inputs"][name] for name in ("model_high_noise", "model_low_noise")
        }
        given["20"] = {"class_type": "WanExpertsCompile", "inputs": models}
        given["6"]["inputs"].update(model_high_noise=["20", 0], model_low_noise=["20", 1])
    seen = []

    def stop(self: Pipeline, request: Request) -> Plan:
        seen.append(self.kernels)
        raise ValueError("seen")

    monkeypatch.setattr(command, "can_compile", lambda _: True)
    monkeypatch.setattr(Pipeline, "plan", stop)
    assert run(tmp_path, given) == 2
    assert seen == [Kernels(compiled=through_node)]


def test_settings_change_the_run_and_the_canvas(tmp_path: Path) -> None:
    canvas = json.loads(UI.read_text(encoding="utf-8"))
    settings = (
        "steps=3",
        "seed=7",
        "frames=5",
        "5.width=32",
        "height=32",
        "prompt=a blue square moves up",
    )
    options = [word for setting in settings for word in ("--set", setting)]
    assert run(tmp_path, canvas, *options) == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        made = json.loads(container.metadata["wan"])
        shown = json.loads(container.metadata["workflow"])
        assert sum(1 for _ in container.decode(video=0)) == 5
    assert (made["prompt"], made["seed"], made["sampling"]["steps"]) == (
        "a blue square moves up",
        7,
        3,
    )
    sampler = next(node for node in shown["nodes"] if node["type"] == "WanExpertsSampler")
    assert (sampler["widgets_values"][0], sampler["widgets_values"][2]) == (7, 3)


def test_three_stages_of_which_one_has_no_lora_become_phases(tmp_path: Path, monkeypatch) -> None:
    given = graph()
    inputs = given["6"]["inputs"]
    given["20"] = {"class_type": "WanExpertsLora", "inputs": {
        "model_high_noise": ["1", 0], "model_low_noise": ["1", 1], "lora_high_noise": "a.safetensors",
        "lora_low_noise": "none", "strength_high_noise": 0.5, "strength_low_noise": 1.0,
        "strict": False, "allow_mismatch": False}}  # fmt: skip
    inputs |= {"model_high_noise": ["20", 0], "model_low_noise": ["20", 1], "model_motion": ["1", 0],
               "cfg_motion": 2.5, "motion_until": 970.0, "cfg_curve_low": "1:3, 0:1"}  # fmt: skip
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "a.safetensors").touch()
    seen: dict[str, Any] = {}
    really_plan = Pipeline.plan

    def stop(self: Pipeline, uses: Any, **_: Any) -> Pipeline:
        seen["loras"] = uses
        raise ValueError("seen")

    def plan(self: Pipeline, request: Request) -> Plan:
        seen["request"] = request
        return really_plan(self, request)

    monkeypatch.setattr(Pipeline, "with_loras", stop)
    monkeypatch.setattr(Pipeline, "plan", plan)
    assert run(tmp_path, given, "--models", tmp_path) == 2
    (lora,) = seen["loras"]
    assert (lora.path, lora.strength, lora.part) == (
        tmp_path / "loras" / "a.safetensors",
        0.5,
        "high",
    )
    curve = Guidance(points=((1.0, 3.0), (0.0, 1.0)))
    assert seen["request"].phases == (
        Phase(
            expert="high",
            guidance=Guidance.constant(2.5),
            switch=Switch("timestep", 970.0),
            loras=0.0,
            called="motion",
        ),
        Phase(
            expert="high",
            guidance=Guidance.constant(3.0),
            switch=Switch("step", 1),
            called="high noise",
        ),
        Phase(expert="low", guidance=curve, called="low noise"),
    )


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    given = graph()
    given[node]["inputs"].update(inputs)
    return given


STRANGER = {
    "class_type": "EasyCache",
    "inputs": {"model": ["1", 0]},
    "_meta": {"title": "Cache it"},
}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (changed("6", model_low_noise=["30", 0]) | {"30": STRANGER},
         r"only ComfyUI can run node 30 \(Cache it\); use `python -m wan queue`"),
        (changed("5", batch_size=2), "batch_size is not 1"),
        (changed("6", positive=["4", 1]), "does not get both texts"),
        (changed("6", sampler_name="ddim"), "sampler ddim is for ComfyUI alone"),
        (changed("7", format="png-sequence"), "format png-sequence makes a folder"),
        (changed("6", steps=0), "steps"),
        (changed("5", frames=80), "use 77 or 81"),
        (changed("4", positive=" "), "the prompt is empty"),
        (changed("1", model_low_noise="no.safetensors"),
         "the low-noise expert no.safetensors is not in the folders given by --models"),
        (changed("1", model_low_noise="wan_tiny_t2v_high_noise.safetensors"), "both experts are one file"),
        ({key: node for key, node in graph().items() if key != "7"}, "has no WanExpertsDecodeToVideo"),
        (graph() | {"8": graph()["7"]}, "has 2 WanExpertsDecodeToVideo"),
    ],
)  # fmt: skip
def test_what_cannot_run_here_is_one_sentence(
    tmp_path: Path, capsys, given: Any, words: str
) -> None:
    assert run(tmp_path, given) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("error: ")

    assert re.search(words, told[0]), told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["graph.json"]


def test_nodes_beside_the_clip_do_not_matter(tmp_path: Path) -> None:
    given = graph() | {
        "30": STRANGER,
        "31": {"class_type": "SaveLatent", "inputs": {"samples": ["6", 0]}},
    }
    assert run(tmp_path, given) == 0


@pytest.mark.parametrize("path", sorted(UI.parent.glob("wan22_*.json")), ids=lambda path: path.stem)
def test_every_published_workflow_runs_here_or_says_why_not(
    tmp_path: Path, capsys, path: Path
) -> None:
    assert main(["run", str(path), "--out", str(tmp_path / "a.mp4")]) == 2
    told = capsys.readouterr().err
    if path.stem == "wan22_t2v_core_loaders":
        assert "has no WanExpertsDecodeToVideo; `run` makes" in told
    else:
        assert re.search(
            r"the high-noise expert wan2.2_t2v_high_noise_14B_\w+.safetensors is not in", told
        )
