"""``python -m wan generate`` that ends before its time, and the same command again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file
from wanexperts.tests.wan.family import write_family
from wanexperts.wan.cli import main
from wanexperts.wan.cli.generate import KEPT
from wanexperts.wan.guidance import parse_guidance
from wanexperts.wan.pipeline import Pipeline, Request
from wanexperts.wan.switch import Switch
from wanexperts.wan.vae import WanVAE
from wanexperts.wan.video import VideoWriter

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


def _arguments(parts: dict[str, Path], out: Path, *more: object) -> list[str]:
    given = ["generate", "--prompt", PROMPT, "--out", out, "--models", parts["high"].parent, *more]
    return list(map(str, given))


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_the_same_command_goes_on_where_it_ended(parts, tmp_path: Path, ending: int) -> None:
    out, steps = tmp_path / "out.mp4", 300
    more = ["--steps", steps, "--switch-step", 2, "--solver", "unipc", "--shift", 1]
    command = [sys.executable, "-m", "wan", *_arguments(parts, out, *more)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("high-noise expert")
        process.send_signal(ending)
        process.stderr.read()
        process.wait(60)
    assert not out.exists()
    states = list((tmp_path / KEPT).glob("*.state"))
    assert states
    latents = tmp_path / "run.latent"
    done = subprocess.run(
        [*command, "--save-latents", latents], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = done.stderr.splitlines()[0].split()
    assert told[:4] == ["going", "on", "after", "step"]
    assert 1 <= int(told[4]) < steps
    assert [path.name.partition(".")[2] for path in (tmp_path / KEPT).iterdir()].count(
        "latent"
    ) == 1
    whole = tmp_path / "whole"
    whole.mkdir()
    one = whole / "run.latent"
    subprocess.run(
        [sys.executable, "-m", "wan", *_arguments(parts, whole / "out.mp4", *more),
         "--save-latents", str(one)], cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    first, second = load_file(latents), load_file(one)
    assert torch.equal(first["latent_tensor"], second["latent_tensor"])
    assert not list((tmp_path / KEPT).glob("*.[ab].state")), "a finished run needs no states"


@pytest.fixture
def written(monkeypatch) -> list[torch.Tensor]:
    """The frames that go into mp4 files. Of the same ones x264 makes one of two files: 3 of 14 runs differed."""
    frames: list[torch.Tensor] = []
    write = VideoWriter.write

    def seen(self, more: torch.Tensor) -> None:
        frames.append(more.clone())
        write(self, more)

    monkeypatch.setattr(VideoWriter, "write", seen)
    return frames


def test_a_finished_run_is_decoded_again_and_fresh_runs_anew(
    parts, tmp_path: Path, capsys, caplog, written
) -> None:
    arguments = _arguments(parts, tmp_path / "out.mp4")
    assert main(arguments) == 0
    first = torch.cat(written)
    assert len(first) == 5
    written.clear()
    capsys.readouterr()
    caplog.clear()
    assert main(arguments) == 0
    assert caplog.messages == [
        f"this run was finished before; its latents are in {tmp_path / KEPT}"
    ]
    phases = [line.split("[")[0].strip() for line in capsys.readouterr().err.splitlines()]
    assert phases == ["decode"]
    assert torch.equal(torch.cat(written), first)
    written.clear()
    caplog.clear()
    assert main([*arguments, "--fresh"]) == 0
    assert caplog.messages == []
    phases = [line.split("[")[0].strip() for line in capsys.readouterr().err.splitlines()]
    assert phases == ["high-noise expert", "low-noise expert", "decode"]
    assert torch.equal(torch.cat(written), first)


def test_a_decoding_that_failed_costs_no_sampling(
    parts, tmp_path: Path, monkeypatch, caplog
) -> None:
    arguments = _arguments(parts, tmp_path / "out.mp4")

    def broken(self, latents, *, kept):
        raise OSError("the disk is full")
        yield

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "decode", broken)
        assert main(arguments) == 2
    monkeypatch.setattr(
        "wanexperts.wan.pipeline.system.sample", lambda *_, **__: pytest.fail("sampled again")
    )
    assert main(arguments) == 0


def test_decoding_without_memory_says_where_the_latents_are(
    parts, tmp_path: Path, monkeypatch, capsys
) -> None:
    def decode_stream(self, latents, plan):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. More words.")
        yield

    monkeypatch.setattr(WanVAE, "decode_stream", decode_stream)
    assert main(_arguments(parts, tmp_path / "out.mp4")) == 1
    (kept,) = (tmp_path / KEPT).glob("*.latent")
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("error: decoding ")
    assert told.endswith(f"; the latents are in {kept}")
    assert not list(tmp_path.glob("*.mp4"))
    saved = tmp_path / "saved.latent"
    assert main(_arguments(parts, tmp_path / "out.mp4", "--save-latents", saved)) == 1
    assert capsys.readouterr().err.rstrip().endswith(f"; the latents are in {saved}")
    assert (
        main(["decode", *map(str, (saved, "--vae", parts["vae"], "--out", tmp_path / "b.mp4"))])
        == 1
    )
    assert capsys.readouterr().err.rstrip().endswith(f"; the latents are in {saved}")


def test_another_low_stage_starts_at_the_switch(parts, tmp_path: Path, caplog) -> None:
    arguments = _arguments(parts, tmp_path / "out.mp4", "--switch-step", 2)
    assert main(arguments) == 0
    caplog.clear()
    assert main([*arguments, "--guidance-low", "1:3,0:1"]) == 0
    assert caplog.messages == ["going on after step 2 of 3, of a run with the same beginning"]


def test_a_folder_for_runs_that_cannot_be_made_costs_a_sentence(
    parts, tmp_path: Path, caplog
) -> None:
    (tmp_path / KEPT).write_text("in the way")
    assert main(_arguments(parts, tmp_path / "out.mp4")) == 0
    (told,) = caplog.messages
    assert told.startswith("the rest of this run is not kept: ")
    assert (tmp_path / "out.mp4").exists()
    assert os.listdir(tmp_path) in (["out.mp4", KEPT], [KEPT, "out.mp4"])


@pytest.mark.parametrize(
    ("arguments", "switch", "steps"),
    [
        (["--switch", "step=1"], Switch("step", 1), 1),
        (["--switch", "fraction=0.67"], Switch("fraction", 0.67), 2),
        (["--switch", "timestep=999"], Switch("timestep", 999), 1),
        (["--switch", "boundary=0.2"], Switch("boundary", 0.2), 3),
        (["--switch", "snr=0"], Switch("snr", 0), 0),
        (["--switch", "auto"], Switch(), None),
    ],
)
def test_the_switch_takes_every_form(
    parts, tmp_path: Path, arguments: list[str], switch: Switch, steps: int | None
) -> None:
    out = tmp_path / "out.mp4"
    curve = "1:3, 0.5:1"
    assert main(_arguments(parts, out, *arguments, "--guidance-high", curve)) == 0
    with av.open(str(out)) as container:
        told = json.loads(container.metadata["wan"])
    assert told["switch"] == {"kind": switch.kind, "value": switch.value}
    assert told["guidance_high"] == {"points": [[1.0, 3.0], [0.5, 1.0]]}
    pipeline = Pipeline.load(**parts, device="cpu")
    request = Request(
        prompt=PROMPT,
        sampling=pipeline.defaults,
        switch=switch,
        guidance_high=parse_guidance(curve),
    )
    plan = pipeline.plan(request)
    if steps is not None:
        assert plan.run.steps_of(0) == range(steps)
    plain = replace(request, guidance_high=None)
    if plan.run.steps_of(0):
        assert not torch.equal(pipeline.sample(request), pipeline.sample(plain))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--switch", "step"], "--switch 'step' is not KIND=VALUE; write snr=0.02 or step=10"),
        (["--switch", "snr=x"], "--switch 'snr=x' is not KIND=VALUE"),
        (["--switch", "place=1"], "switch='place' is not one of auto, boundary, snr"),
        (["--switch", "step=9"], "switch step=9 is not within the 3 steps"),
        (["--switch", "timestep=2000"], "switch timestep=2000 is not within 0 to 1000"),
        (["--switch", "step=1", "--boundary", "0.5"], "not allowed with argument --switch"),
        (["--guidance-high", "strong"], "guidance 'strong' is neither a number nor a curve"),
        (["--guidance-low", "2:1,0:1"], "guidance point 2:1 is not at a noise level"),
        (["--noise", "loud"], "invalid choice: 'loud'"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    parts, tmp_path: Path, capsys, arguments: list[str], sentence: str
) -> None:
    try:
        code = main(_arguments(parts, tmp_path / "out.mp4", *arguments))
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr().err
    assert code == 2
    assert told.count("\n") == 1
    assert sentence in told
    assert list(tmp_path.iterdir()) == []
