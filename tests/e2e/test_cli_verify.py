"""``python -m wan verify`` and ``recipe`` as a person runs them."""

from __future__ import annotations

import io
import shlex

import pytest
import torch
from wanexperts.tests.wan.family import write_family
from wanexperts.wan.cli import build_parser, main
from wanexperts.wan.manifest import read_manifest
from wanexperts.wan.video import save_png

OFFICIAL = "python generate.py --task t2v-A14B --sample_guide_scale 3.0,4.0 --base_seed 42"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_family(tmp_path_factory.mktemp("family"))["high"].parent


def generate(models, folder, name, *more):
    out, latents = folder / f"{name}.mp4", folder / f"{name}.latent"
    given = [
        "--prompt",
        "a red circle",
        "--out",
        out,
        "--save-latents",
        latents,
        "--models",
        models,
    ]
    assert main(["generate", *map(str, [*given, *more])]) == 0
    return out, latents


def verify(first, second):
    return main(["verify", str(first), str(second)])


def test_a_video_its_latents_and_a_second_run_are_one_run(models, tmp_path, capsys):
    out, latents = generate(models, tmp_path, "one", "--seed", 3)
    again, _ = generate(models, tmp_path, "two", "--seed", 3, "--fresh")
    capsys.readouterr()
    for first, second in ((out, latents), (out, again)):
        assert verify(first, second) == 0
        assert capsys.readouterr().out == "the same latents, bit for bit\n"


def test_a_still_and_frames_of_a_sequence_are_known_by_their_png_files(models, tmp_path, capsys):
    out, latents = tmp_path / "one.png", tmp_path / "one.latent"
    ask = ["generate", "--prompt", "红 circle", "--models", str(models), "--out"]
    assert main([*ask, str(out), "--frames", "1", "--save-latents", str(latents)]) == 0
    vae = next(models.rglob("*vae*.safetensors"))
    decode = ["decode", str(latents), "--vae", str(vae), "--out", str(tmp_path / "frames")]
    assert main([*decode, "--format", "png16-sequence"]) == 0
    capsys.readouterr()
    assert verify(out, latents) == 0
    assert capsys.readouterr().out == "the same latents, bit for bit\n"
    (frame,) = (tmp_path / "frames").iterdir()
    assert read_manifest(frame) == read_manifest(out)
    assert read_manifest(out).texts["positive"] == "红 circle"
    for name, content in {"cut.png": out.read_bytes()[:100], "bare.png": None}.items():
        if content is None:
            save_png(tmp_path / name, torch.zeros(16, 16, 3, dtype=torch.uint8))
        else:
            (tmp_path / name).write_bytes(content)
        assert verify(tmp_path / name, latents) == 2
    told = capsys.readouterr().err
    assert "cut.png is a PNG that is cut off; use a whole one" in told
    assert "bare.png holds no record of its run" in told


def test_what_differs_is_named(models, tmp_path, capsys):
    out, _ = generate(models, tmp_path, "one")
    other, _ = generate(models, tmp_path, "two", "--seed", 1, "--guidance-low", 5)
    capsys.readouterr()
    assert verify(out, other) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "the latents differ"
    assert [line.partition(":")[0] for line in lines] == ["guidance of low-noise expert", "seed"]


def test_the_record_is_whole(models, tmp_path):
    out, _ = generate(models, tmp_path, "one", "--frames", 5, "--steps", 4)
    found = read_manifest(out)
    assert (found.steps, found.clip) == (4, "48 x 32, 5 frames")
    assert all(stage.weights.digest for stage in found.stages)
    assert found.files.keys() == {"text_encoder", "vae"}
    assert found.texts["positive"] == "a red circle"
    assert len(found.result) == 64


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "neither an mp4, a png nor saved latents"),
        (b"hello", "neither an mp4, a png nor saved latents"),
        (b"\0\0\0\x18ftypisom" + bytes(100), "damaged mp4"),
        (None, "does not exist"),
    ],
)
def test_files_without_a_record_are_told(models, tmp_path, capsys, content, words):
    path = tmp_path / "file.mp4"
    if content is not None:
        path.write_bytes(content)
    assert verify(path, path) == 2
    assert words in capsys.readouterr().err.lower()


def test_weights_hold_no_record(models, capsys):
    assert verify(models / "high.safetensors", models / "low.safetensors") == 2
    assert "holds no record of its run" in capsys.readouterr().err


def test_a_recipe_becomes_a_command_that_can_be_run(tmp_path, capsys):
    path = tmp_path / "run.sh"
    path.write_text(OFFICIAL)
    assert main(["recipe", str(path)]) == 0
    *_, command = capsys.readouterr().out.splitlines()
    words = shlex.split(command)
    assert words[:4] == ["python", "-m", "wan", "generate"]
    given = build_parser().parse_args(words[3:])
    assert (given.steps, given.shift, given.seed) == (40, 12.0, 42)
    assert (float(given.guidance_high), float(given.guidance_low)) == (4.0, 3.0)
    assert (given.width, given.height, given.num_frames) == (1280, 720, 81)


def test_a_recipe_may_be_piped_in(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(OFFICIAL))
    assert main(["recipe", "-"]) == 0
    assert "26 of 40" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("a cat"))
    assert main(["recipe", "-"]) == 2
    assert "paste the official command" in capsys.readouterr().err


def test_what_is_no_text_is_told(tmp_path, capsys):
    path = tmp_path / "clip.bin"
    path.write_bytes(bytes(range(256)))
    assert main(["recipe", str(path)]) == 2
    assert "is not text" in capsys.readouterr().err
