"""``python -m wan plan``: what it prints against the run it foretells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from wanexperts.wan.checkpoint import find_parts, open_checkpoint
from wanexperts.wan.checkpoint.stream import block_loads
from wanexperts.wan.cli import main, memory
from wanexperts.wan.config import T2V_A14B
from wanexperts.wan.pipeline import Pipeline, Request
from wanexperts.wan.plan import describe
from wanexperts.wan.schedule import make_schedule

from .family import write_family

ROOT = Path(__file__).resolve().parents[2]
TINY, A14B = (ROOT / "workflows" / f"{name}.json" for name in ("wan_tiny_t2v", "wan22_t2v_a14b"))


def planned(path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["plan", str(path), *options]) == 0
    return capsys.readouterr().out.splitlines()


def changed(tmp_path: Path, **inputs: Any) -> Path:
    """The tiny API graph with other inputs on its sampler."""
    graph = json.loads((ROOT / "workflows" / "api" / TINY.name).read_text(encoding="utf-8"))
    sampler = next(n for n in graph.values() if n["class_type"] == "WanExpertsSampler")
    sampler["inputs"].update(inputs)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    return path


def test_the_published_workflow_without_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    lines = planned(A14B, capsys)
    assert lines[0] == "20 steps, unipc grid, shift 12: 13 high noise, 7 low noise"
    schedule = make_schedule("unipc", steps=20, shift=12.0)
    shown = [line.split() for line in lines[3:23]]
    assert [float(words[1]) for words in shown] == pytest.approx(
        schedule.sigmas[:-1].tolist(), abs=1e-5
    )
    assert [float(words[2]) for words in shown] == schedule.timesteps.tolist()
    missing = [line for line in lines if "taken as published" in line]
    assert [name in line for name, line in zip(
        ("high_noise_14B", "low_noise_14B", "umt5_xxl", "wan_2.1_vae"), missing, strict=True
    )] == [True] * 4  # fmt: skip
    calls = next(line for line in lines if line.startswith("calls"))
    assert calls.startswith("calls of the network: 26 high noise, 14 low noise; 1.68 PFLOP each")


def test_the_bundled_family_is_found_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = planned(TINY, capsys, "--time", "--dtype", "float32", "--device", "cpu")
    assert not [line for line in lines if line.startswith("note")]
    assert any(
        line.startswith("time: about") and line.endswith("told from one timed block")
        for line in lines
    )


def test_files_in_a_models_folder_are_found_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = write_family(tmp_path)
    folder = tmp_path / "models" / "diffusion_models"
    folder.mkdir(parents=True)
    for part in ("high", "low"):
        parts[part].rename(folder / f"my_{part}.safetensors")
    graph = json.loads((ROOT / "workflows" / "api" / TINY.name).read_text(encoding="utf-8"))
    loader = next(n for n in graph.values() if n["class_type"] == "WanExpertsLoader")
    loader["inputs"] |= {f"model_{p}_noise": f"my_{p}.safetensors" for p in ("high", "low")}
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    lines = planned(path, capsys, "--models", str(tmp_path))
    assert not [line for line in lines if "taken as published" in line]


def test_a_preset_decides_and_the_model_decides_what_official_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = planned(changed(tmp_path, preset="lightning", steps=33), capsys)
    assert fast[0] == "4 steps, lightning grid, shift 5: 2 high noise, 2 low noise"
    own = planned(changed(tmp_path, preset="official", steps=33), capsys)
    assert own[0] == "20 steps, unipc grid, shift 5: 9 high noise, 11 low noise"


@pytest.mark.parametrize(
    ("inputs", "first"),
    [
        ({"switch": "step", "switch_step": 3}, "3 high noise, 17 low noise"),
        ({"switch": "boundary", "boundary": 0.5}, "17 high noise, 3 low noise"),
        ({"switch": "fraction", "switch_value": 0.25}, "5 high noise, 15 low noise"),
        ({"scheduler": "shifted", "steps": 4}, "2 high noise, 2 low noise"),
    ],
)
def test_widgets_of_the_sampler_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inputs: dict[str, Any], first: str
) -> None:
    assert planned(changed(tmp_path, **inputs), capsys)[0].endswith(first)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"steps": "many"}, "steps of node 6 (Sample Wan Experts) is 'many', not a number"),
        ({"scheduler": "beta"}, "'beta' is known only inside ComfyUI"),
        ({"preset": "fast"}, "unknown preset 'fast'"),
        ({"switch": "boundary", "boundary": 3.0}, "boundary=3 is not a noise level"),
    ],
)
def test_a_run_that_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], inputs: dict[str, Any], words: str
) -> None:
    assert main(["plan", str(changed(tmp_path, **inputs))]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_workflow_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "no such.json"]) == 2
    assert "no such.json" in capsys.readouterr().err


def test_what_is_foretold_is_what_the_pipeline_plans(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline.load(**find_parts())
    assert pipeline.defaults.boundary == T2V_A14B.sampling.boundary
    request = Request(prompt="a red circle", sampling=pipeline.defaults)
    wanted = describe(pipeline.plan(request).run).replace("-noise expert", " noise")
    assert "\n".join(planned(TINY, capsys)[:23]) == wanted


def test_the_design_that_a_run_would_have_is_told_with_its_peak(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--device", "cpu", "--dtype", "float32")
    assert "memory exact: all on the device (the same numbers)" in planned(TINY, capsys, *options)
    monkeypatch.setattr(memory, "device_bytes", lambda _: 3 * 10**6)
    small = planned(TINY, capsys, *options)
    assert any(line.startswith("memory int8: ") and "exact design would" in line for line in small)
    pipeline = Pipeline.load(**find_parts(), device="cpu")
    plan = pipeline.plan(Request(prompt="a red circle", sampling=pipeline.defaults))
    assert memory.with_memory(pipeline, plan, "auto").memory.name == "int8"
    (peak,) = [
        line for line in planned(A14B, capsys, "--device", "cpu", "--memory", "int8")
        if line.startswith("memory on the device")
    ]  # fmt: skip
    assert "sampling 29.5 GB (28.6 GB weights + 894 MB)" in peak  # exact: 1.22 GB


def test_what_streaming_holds_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = planned(TINY, capsys, "--device", "cpu", "--dtype", "float32")
    (told,) = [line for line in lines if line.startswith("with blocks read from disk")]
    expert = open_checkpoint(find_parts()["high"])
    blocks = [load.nbytes for load in block_loads(expert, torch.device("cpu"))]
    held = expert.nbytes - sum(blocks) + 2 * max(blocks)
    number = re.findall(r"\(([\d.]+) MB weights", told)
    assert 1 <= float(*number) * 1e6 / held < 1.2  # measured: 1.04
    never = planned(TINY, capsys, "--stream", "never")
    assert not any(line.startswith("with blocks") for line in never)
