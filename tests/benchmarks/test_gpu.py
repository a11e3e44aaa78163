"""The GPU script runs through on a CPU, loses no section to another, and says what that leaves open."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from wanexperts.tests.conftest import ROOT

COMMAND = [sys.executable, "-m", "benchmarks.gpu"]
UNMEASURED = (
    "not measured without a GPU: peak of allocated memory against 3.2 and 4.5 GB; seconds of a forward "
    "beside ComfyUI and diffusers; how far copies of weights hide behind the computation; how much "
    "slower a file is than weights on the card; the wait at the change of experts; seconds and peak of "
    "decoding 720p/81; which attention backends run, and how fast"
)


def run(*options: str, code: int = 0) -> tuple[list[dict], str]:
    """Lines as JSON, and the words after them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*COMMAND, *options], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    told = done.stdout.splitlines()
    return [json.loads(line) for line in told if line[0] == "{"], told[-1]


def test_every_section_runs_on_a_cpu_and_a_way_that_fails_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.0"')  # and no ComfyUI
    lines, words = run("--self-test", "--comfyui", str(tmp_path), code=1)
    found = {line["section"]: line for line in lines}
    assert [*found] == ["memory", "forward", "stream", "file", "swap", "vae", "attention"]
    for line in lines:
        assert line["self_test"] is True
        assert line["torch"] == torch.__version__
        assert line["cores"]
        assert "gpu" not in line
    told = {name: line["failed"] for name, line in found.items() if line["failed"]}
    assert told.keys() == {"forward"}
    (sentence,) = told["forward"]
    assert sentence.startswith("comfyui: ModuleNotFoundError")
    (size,) = found["forward"]["sizes"].values()
    assert set(size["seconds"]) == {"ours", "diffusers"}
    assert min(size["seconds"].values()) > 0
    (size,) = found["memory"]["sizes"].values()
    assert size["exact"].keys() == {"seconds", "with_one_fp8_layer_gb"}
    assert size["exact"]["with_one_fp8_layer_gb"] is None
    assert size["met"] is None
    (size,) = found["file"]["sizes"].values()
    assert size["equal"]
    assert words == UNMEASURED


@pytest.mark.gpu
def test_a_gpu_holds_the_lines_of_memory() -> None:
    if not torch.cuda.is_available():
        pytest.skip(f"{UNMEASURED}; run python -m benchmarks.gpu where there is one")
    (line,), _ = run("--sections", "memory")
    assert all(size["met"] for size in line["sizes"].values())
