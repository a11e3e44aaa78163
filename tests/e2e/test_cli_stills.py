"""Text to image, and drafts by a tiny decoder, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wanexperts.tests.wan.clips import CLIP, png_tags, smooth
from wanexperts.tests.wan.family import write_family
from wanexperts.tests.wan.tiny_files import NORMALIZED, RAW, write_tiny
from wanexperts.wan.checkpoint import load_decoder
from wanexperts.wan.cli import main
from wanexperts.wan.pipeline import decoding
from wanexperts.wan.video import StillWriter, frame_name, open_writer, read_png, to_frames


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


def latents(folder: Path, frames: int) -> Path:
    """A file as core Save Latent writes."""
    raw = torch.randn(1, 16, frames, 4, 8, generator=torch.Generator().manual_seed(frames))
    path = folder / f"{frames}.latent"
    save_file({"latent_tensor": raw, "latent_format_version_0": torch.empty(0)}, path)
    return path


def wanted(vae: Path, source: Path, bits: int = 8) -> torch.Tensor:
    decoder = load_decoder(vae, dtype=torch.float32)
    return to_frames(decoder.decode(load_file(source)["latent_tensor"])[0], bits)


def run(command: str, *arguments: object) -> None:
    assert main([command, *map(str, arguments)]) == 0


@pytest.mark.parametrize(("options", "bits"), [((), 8), (("--format", "png16"), 16)])
def test_one_latent_frame_becomes_one_image(parts, tmp_path: Path, options, bits) -> None:
    source, out = latents(tmp_path, 1), tmp_path / "still.png"
    run("decode", source, "--vae", parts["vae"], "--out", out, *options)
    assert torch.equal(read_png(out), wanted(parts["vae"], source, bits)[0])
    assert json.loads(png_tags(out)["wan"])["decode"]["vae"] == parts["vae"].name
    assert sorted(tmp_path.iterdir()) == sorted([source, out])


def test_a_prompt_becomes_one_image(parts, tmp_path: Path) -> None:
    out, saved = tmp_path / "still.png", tmp_path / "run.latent"
    models = parts["high"].parent
    run("generate", "--prompt", "a red circle", "--models", models, "--frames", 1, "--seed", 3,
        "--steps", 2, "--out", out, "--save-latents", saved)  # fmt: skip
    assert torch.equal(read_png(out), wanted(parts["vae"], saved)[0])
    assert json.loads(png_tags(out)["wan"])["seed"] == 3


@pytest.mark.parametrize("command", ["decode", "generate"])
def test_a_clip_is_not_one_image(parts, tmp_path: Path, capsys, monkeypatch, command) -> None:
    monkeypatch.setattr(decoding, "load_decoder", lambda *_, **__: pytest.fail("weights were read"))
    out = tmp_path / "still.png"
    given = {
        "decode": [latents(tmp_path, 2), "--vae", parts["vae"]],
        "generate": ["--prompt", "x", "--models", parts["high"].parent, "--frames", 5],
    }[command]
    assert main([command, *map(str, given), "--out", str(out)]) != 0
    assert (
        "the clip has 5 frames, still.png is one image; end it in .mp4" in capsys.readouterr().err
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("out", "format", "sentence"),
    [
        ("still.png", "png-sequence", "still.png is no name for format png-sequence; use a folder"),
        ("still", "png", "still is no name for format png; end it in .png"),
        ("still.mp4", "png16", "still.mp4 is no name for format png16; end it in .png"),
    ],
)
def test_names_and_formats_agree(parts, tmp_path: Path, capsys, out, format, sentence) -> None:
    given = [
        latents(tmp_path, 1),
        "--vae",
        parts["vae"],
        "--out",
        tmp_path / out,
        "--format",
        format,
    ]
    assert main(["decode", *map(str, given)]) != 0
    assert sentence in capsys.readouterr().err


def test_an_image_takes_one_frame_and_replaces_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "still.png"
    path.write_text("an old one")
    refused = pytest.raises(ValueError, match="is one image; write a clip as an mp4 or a PNG seq")
    with refused, StillWriter(path, CLIP) as writer:
        writer.write(smooth(1))
        writer.write(smooth(1))
    assert path.read_text() == "an old one"
    with (
        pytest.raises(ValueError, match="no frame was written"),
        open_writer(path, CLIP, format="png"),
    ):
        pass
    assert list(tmp_path.iterdir()) == [path]
    with open_writer(path, CLIP, format="png") as writer:
        writer.write(smooth(1))
    assert torch.equal(read_png(path), smooth(1)[0])


@pytest.mark.parametrize("name", [f"{NORMALIZED}.pth", f"{RAW}.safetensors"])
def test_a_tiny_decoder_makes_a_draft(parts, tmp_path: Path, name) -> None:
    tiny = write_tiny(tmp_path / name)
    saved, first, second = (tmp_path / n for n in ("run.latent", "draft.mp4", "draft"))
    run("generate", "--prompt", "a red circle", "--models", parts["high"].parent, "--vae", tiny,
        "--steps", 2, "--out", first, "--save-latents", saved)  # fmt: skip
    run("decode", saved, "--vae", tiny, "--out", second)
    frames = wanted(tiny, saved)
    assert len(frames) == 5
    for number, frame in enumerate(frames, 1):
        assert torch.equal(read_png(second / frame_name(number)), frame)
    assert json.loads(png_tags(second / frame_name(1))["wan"])["decode"]["vae"] == name
    assert first.stat().st_size


def test_latents_of_a_run_do_not_depend_on_who_decodes_them(parts, tmp_path: Path) -> None:
    found = []
    for name, vae in (("a", parts["vae"]), ("b", write_tiny(tmp_path / "taew2_1.safetensors"))):
        saved = tmp_path / f"{name}.latent"
        run("generate", "--prompt", "x", "--models", parts["high"].parent, "--vae", vae, "--frames", 1,
            "--steps", 2, "--out", tmp_path / f"{name}.png", "--save-latents", saved)  # fmt: skip
        found.append(load_file(saved)["latent_tensor"])
    assert torch.equal(*found)
