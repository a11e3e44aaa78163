"""``python -m wan generate`` as a person runs it: files out, sentences on bad input, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file
from wanexperts.tests.wan.family import write_family
from wanexperts.wan.checkpoint import BUNDLED
from wanexperts.wan.cli import main
from wanexperts.wan.cli.generate import KEPT
from wanexperts.wan.pipeline import Pipeline, Request
from wanexperts.wan.switch import Switch

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle moves left"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def models(parts: dict[str, Path]) -> Path:
    return parts["high"].parent


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "wan", "generate", *map(str, arguments)]


def _left(folder: Path) -> list[Path]:
    """What is in a folder besides the runs kept there."""
    return sorted(path for path in folder.iterdir() if path.name != KEPT)


def _frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_prompt_becomes_a_video(models: Path, parts, tmp_path: Path) -> None:
    out, sheet, latents = (tmp_path / name for name in ("out.mp4", "sheet.png", "run.latent"))
    done = subprocess.run(
        _command(
            "--prompt", PROMPT, "--out", out, "--models", models, "--seed", 7, "--frames", 9,
            "--switch-step", 1, "--contact-sheet", sheet, "--save-latents", latents,
        ),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()) == (0, [str(out), str(sheet), str(latents)])
    told = done.stderr.splitlines()
    assert [line.split("[")[0].strip() for line in told] == [
        "high-noise expert", "low-noise expert", "decode",
    ]  # fmt: skip
    assert [line.split()[-3] for line in told] == ["1/1", "2/2", "9/9"]
    assert _left(tmp_path) == sorted([out, sheet, latents])
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate, stream.width, stream.height) == (9, 8, 48, 32)
        told = json.loads(container.metadata["wan"])
    assert (told["prompt"], told["seed"]) == (PROMPT, 7)
    assert told["switch"] == {"kind": "step", "value": 1}
    assert told["sampling"]["num_frames"] == 9
    assert told["weights"] == {part: path.name for part, path in parts.items()}
    with av.open(str(sheet)) as container:
        image = next(container.decode(video=0))
    assert (image.width, image.height) == (6 * 48, 2 * 32)

    pipeline = Pipeline.load(**parts, device="cpu")
    from dataclasses import replace

    sampling = replace(pipeline.defaults, num_frames=9)
    request = Request(prompt=PROMPT, sampling=sampling, seed=7, switch=Switch("step", 1))
    saved = load_file(latents)
    assert set(saved) == {"latent_tensor", "latent_format_version_0"}
    torch.testing.assert_close(saved["latent_tensor"], pipeline.sample(request))


def test_interrupt_leaves_nothing_but_the_run_to_go_on_with(models: Path, tmp_path: Path) -> None:
    command = _command(
        "--prompt", PROMPT, "--out", tmp_path / "out.mp4", "--models", models,
        "--steps", 500, "--switch-step", 3, "--solver", "euler", "--shift", 1,
    )  # fmt: skip
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("high-noise expert")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(60) == 130, rest
    kept, told = rest.splitlines()
    assert re.fullmatch(
        rf"the run is kept after step [3-9]\d* of 500 in {tmp_path}/{KEPT}", kept
    ), kept
    assert told == "interrupted; no broken file was left"
    assert _left(tmp_path) == []


def test_an_interrupt_that_became_another_error_is_still_one(
    models: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """As where Ctrl-C falls into compiled code that is reading weights."""

    def swallowed(self, *_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(Pipeline, "sample", swallowed)
    arguments = ["--prompt", PROMPT, "--out", tmp_path / "out.mp4", "--models", models]
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background
    assert main(["generate", *map(str, arguments)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted; no broken file was left"
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupt_while_decoding_leaves_nothing(models: Path, tmp_path: Path, monkeypatch) -> None:
    decode = Pipeline.decode

    def interrupted(self, latents, *, kept):
        yield next(decode(self, latents))
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "decode", interrupted)
    out, latents = tmp_path / "out.mp4", tmp_path / "run.latent"
    arguments = ["--prompt", PROMPT, "--out", out, "--models", models, "--save-latents", latents]
    assert main(["generate", *map(str, arguments)]) == 130
    assert _left(tmp_path) == [latents]


def _refusal(capsys, *arguments: object) -> str:
    """The one sentence with which the command line refuses."""
    try:
        code = main(["generate", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    told = capsys.readouterr()
    assert (code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return told.err.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompt", ""], "the prompt is empty; say what the clip shows"),
        (["--steps", 0], "steps=0 is not at least 1"),
        (["--steps", "x"], "argument --steps: invalid int value: 'x'; see --help"),
        (["--frames", 80], "num_frames=80 is not 4k+1; use 77 or 81"),
        (["--width", 100], "width=100 is not a positive multiple of 16; use 96 or 112"),
        (["--height", -16], "height=-16 is not a positive multiple of 16"),
        (["--switch-step", 9], "switch step=9 is not within the 3 steps"),
        (["--switch-step", 1, "--boundary", 0.5], "not allowed with argument --switch-step"),
        (["--boundary", 875], "boundary=875 is not a noise level in [0, 1]; use 0.875"),
        (["--solver", "magic"], "invalid choice: 'magic'"),
        (["--seed", -1], "seed=-1 is not within"),
        (["--fps", 0], "fps=0 is not a positive number"),
        (["--device", "toaster"], "device='toaster' cannot be used here; use cpu or cuda"),
        (["--device", "meta"], "device='meta' cannot be used here"),
        (["--models", "/nowhere"], "the folder /nowhere does not exist"),
        (["--contact-sheet", "OUT"], "two outputs have the same name"),
        (["--out", "FOLDER"], "is a folder"),
        (["--out", "FOLDER/no/out.mp4"], "no does not exist; create it first"),
        (["--save-latents", "FOLDER/no/x.latent"], "no does not exist; create it first"),
    ],
)
def test_bad_input_is_one_sentence_before_any_weight_is_read(
    models: Path, tmp_path: Path, capsys, monkeypatch, arguments: list, sentence: str
) -> None:
    monkeypatch.setattr(Pipeline, "sample", lambda *_, **__: pytest.fail("weights were read"))
    out = tmp_path / "out.mp4"
    known = ["--prompt", PROMPT, "--out", out, "--models", models]
    places = {"OUT": str(out)}
    given = [places.get(str(a), str(a).replace("FOLDER", str(tmp_path))) for a in arguments]
    assert sentence in _refusal(capsys, *known, *given)
    assert list(tmp_path.iterdir()) == []


def test_bad_files_are_one_sentence(parts, tmp_path: Path, capsys) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(parts["low"].read_bytes()[:-100])
    for changed, sentence in [
        ({"low": parts["high"]}, "was given for both experts"),
        ({"low": cut}, "is truncated"),
        ({"low": parts["vae"]}, "is a VAE, not an expert"),
        ({"vae": parts["low"]}, "is an expert (diffusion model), not a VAE"),
        ({"text": tmp_path / "no.safetensors"}, "does not exist; check the name"),
        ({"text": None, "vae": None}, "without --vae and --text: name all four files"),
    ]:
        files = {f"--{part}": path for part, path in (parts | changed).items() if path}
        given = [thing for pair in files.items() for thing in pair]
        out = tmp_path / "out.mp4"
        assert sentence in _refusal(capsys, "--prompt", PROMPT, "--out", out, *given)
        assert not out.exists()


def test_no_write_permission(models: Path, capsys) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        # Also when the tests run as root, for whom every folder is writable; the weights' folder
        # is root's own then, so they are read before the change of user.
        pipeline = Pipeline.load(
            **{p: models / f"{p}.safetensors" for p in ("high", "low", "vae", "text")}
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("wanexperts.wan.cli.generate.open_pipeline", lambda _: pipeline)
            root = os.geteuid() == 0
            if root:
                os.seteuid(65534)
            try:
                sentence = _refusal(capsys, "--prompt", PROMPT, "--out", f"{folder}/out.mp4")
            finally:
                if root:
                    os.seteuid(0)
        assert sentence == f"no permission to write in {folder}; choose another folder"
        os.chmod(folder, 0o755)


def test_help_and_missing_arguments(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["generate", "--help"])
    assert stop.value.code == 0
    assert "--prompt" in capsys.readouterr().out
    assert "required: --prompt" in _refusal(capsys, "--out", "x.mp4")


@pytest.mark.skipif(not any(BUNDLED.rglob("*.safetensors")), reason="no bundled weights")
def test_bundled_family_is_the_default(tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    arguments = ["--prompt", "一个红色的圆形", "--out", out, "--steps", 2, "--frames", 5]
    assert main(["generate", *map(str, arguments)]) == 0
    assert _frames(out) == 5
