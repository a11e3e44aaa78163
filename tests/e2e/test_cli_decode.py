"""``python -m wan decode``: saved latents become the clip that the run would have made."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import wave
from contextlib import suppress
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file, save_file
from wanexperts.tests.wan.clips import files_end_at, mp4_tags, png_tags, psnr, read_planes
from wanexperts.tests.wan.family import write_family
from wanexperts.wan.checkpoint import BUNDLED, load_vae
from wanexperts.wan.cli import main
from wanexperts.wan.cli.generate import KEPT
from wanexperts.wan.pipeline import decoding
from wanexperts.wan.video import frame_name, read_png, to_frames

ROOT = Path(__file__).resolve().parents[2]
HEIGHT, WIDTH = 32, 64


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> dict[str, Path]:
    return write_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def vae(parts: dict[str, Path]) -> Path:
    return parts["vae"]


def raw(frames: int = 3, batch: int = 1, channels: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    shape = (batch, channels, frames, HEIGHT // 8, WIDTH // 8)
    return torch.randn(shape, generator=generator)


def comfy_latent(path: Path, latents: torch.Tensor, **metadata: str) -> Path:
    """As core Save Latent writes."""
    tensors = {"latent_tensor": latents, "latent_format_version_0": torch.empty(0)}
    save_file(tensors, path, metadata or None)
    return path


def exact(vae: Path, latents: torch.Tensor) -> torch.Tensor:
    """(3, F, H, W) of the whole clip in one pass, without a stream."""
    with torch.no_grad():
        return load_vae(vae, dtype=torch.float32).decode_whole(latents)[0].clamp(-1, 1)


def run(capsys, *arguments: object) -> str:
    assert main(["decode", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_run_saved_and_decoded_is_the_run(parts, tmp_path: Path, capsys) -> None:
    latents, first, second = (tmp_path / name for name in ("a.latent", "1.mp4", "2.mp4"))
    made = [
        "generate", "--prompt", "a red circle moves left", "--models", parts["high"].parent,
        "--frames", 9, "--out", first, "--save-latents", latents,
    ]  # fmt: skip
    assert main([str(part) for part in made]) == 0
    sheet = tmp_path / "sheet.png"
    capsys.readouterr()
    out = run(
        capsys, latents, "--vae", parts["vae"], "--out", second, "--contact-sheet", sheet,
    )  # fmt: skip
    assert out.split() == [str(second), str(sheet)]
    for planes in zip(read_planes(first), read_planes(second), strict=True):
        assert torch.equal(*planes)
    with av.open(str(second)) as container:
        assert container.streams.video[0].average_rate == 8
    told = [json.loads(mp4_tags(path)["wan"]) for path in (first, second)]
    assert told[1] == told[0] | {"decode": told[1]["decode"]}
    assert told[1]["decode"]["vae"] == parts["vae"].name
    assert read_png(sheet).shape == (2 * 32, 6 * 48, 3)


def test_what_a_run_kept_is_decoded_after_it_broke(parts, tmp_path: Path, capsys) -> None:
    """The clip is lost (a full disk, a crash): its latents, kept before decoding began, make it again."""
    first, second = tmp_path / "1.mp4", tmp_path / "2.mp4"
    made = ["generate", "--prompt", "x", "--models", parts["high"].parent, "--frames", 9]
    assert main([str(part) for part in [*made, "--steps", 2, "--out", first]]) == 0
    wanted = read_planes(first)
    first.unlink()
    capsys.readouterr()
    (kept,) = (tmp_path / KEPT).glob("*.latent")
    run(capsys, kept, "--vae", parts["vae"], "--out", second)
    for planes in zip(wanted, read_planes(second), strict=True):
        assert torch.equal(*planes)
    (between,) = (tmp_path / KEPT).glob("*.branch.state")
    told = refusal(capsys, between, "--vae", parts["vae"], "--out", tmp_path / "3.mp4")
    assert "is a run between two steps; run its `generate` again, which goes on from there" in told


def test_latents_of_comfyui_bring_their_workflow(vae: Path, tmp_path: Path, capsys) -> None:
    graph = json.dumps({"nodes": [], "note": "红色"})
    source = comfy_latent(tmp_path / "ComfyUI_00001_.latent", raw(), prompt="{}", workflow=graph)
    out = tmp_path / "clip.mp4"
    run(capsys, source, "--vae", vae, "--out", out, "--crf", 0, "--format", "h265-10bit-mp4")
    assert mp4_tags(out)["workflow"] == graph
    video = exact(vae, raw()).double()
    red, green, blue = ((video + 1) / 2).unbind(0)
    wanted = (16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)) * 4
    assert psnr(read_planes(out)[0], wanted, 1023) > 45  # measured 49 dB, of noise
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == 16


def test_a_long_clip_has_no_seam(vae: Path, tmp_path: Path, capsys) -> None:
    """101 frames: every number as of one pass over the whole clip."""
    source, out = comfy_latent(tmp_path / "long.latent", raw(26)), tmp_path / "frames"
    run(capsys, source, "--vae", vae, "--out", out, "--format", "png16-sequence", "--fps", 8)
    wanted = to_frames(exact(vae, raw(26)), 16)
    assert len(list(out.iterdir())) == len(wanted) == 101
    for number, frame in enumerate(wanted, 1):
        got = read_png(out / frame_name(number))
        # A stream and one pass add in another order: measured up to 3 of 65535.
        assert (got.int() - frame.int()).abs().max() <= 16
    assert "decode" in json.loads(png_tags(out / frame_name(101))["wan"])


def test_a_name_without_ending_is_a_folder_of_png_files(vae: Path, tmp_path: Path, capsys) -> None:
    source, out = comfy_latent(tmp_path / "a.latent", raw()), tmp_path / "frames"
    assert run(capsys, source, "--vae", vae, "--out", out).split() == [str(out)]
    assert read_png(out / frame_name(9)).dtype == torch.uint8


def test_old_files_are_scaled_and_images_are_clips_of_one_frame(vae, tmp_path, capsys) -> None:
    source, out = tmp_path / "image.safetensors", tmp_path / "image"
    save_file({"latent_tensor": raw(1)[:, :, 0].half() * 0.18215}, source)
    run(capsys, source, "--vae", vae, "--out", out, "--format", "png16-sequence")
    (only,) = out.iterdir()
    wanted = to_frames(exact(vae, raw(1)), 16)[0]
    assert psnr(read_png(only).int(), wanted.int(), 65535) > 50


def test_one_clip_of_a_batch(vae: Path, tmp_path: Path, capsys) -> None:
    source = comfy_latent(tmp_path / "a.latent", raw(2, batch=3))
    out = tmp_path / "second"
    run(capsys, source, "--vae", vae, "--out", out, "--clip", 2)
    wanted = to_frames(exact(vae, raw(2, batch=3)[1:2]), 8)
    assert (read_png(out / frame_name(5)).int() - wanted[4].int()).abs().max() <= 1


def test_sound(vae: Path, tmp_path: Path, capsys) -> None:
    source, out = comfy_latent(tmp_path / "a.latent", raw()), tmp_path / "clip.mp4"
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\0\1" * 32000)
    run(capsys, source, "--vae", vae, "--out", out, "--audio", tmp_path / "a.wav")
    with av.open(str(out)) as container:
        samples = sum(frame.samples for frame in container.decode(audio=0))
        assert samples / 16000 == pytest.approx(9 / 16, abs=0.1)


@pytest.mark.skipif(not any(BUNDLED.rglob("*.safetensors")), reason="no bundled weights")
def test_the_bundled_family_finds_its_vae(tmp_path: Path, capsys) -> None:
    latents = tmp_path / "a.latent"
    arguments = ["--prompt", "a red circle", "--steps", 1, "--frames", 1, "--save-latents", latents]
    assert main(["generate", *map(str, arguments), "--out", str(tmp_path / "1.mp4")]) == 0
    capsys.readouterr()
    assert run(capsys, latents, "--out", tmp_path / "2.mp4")


def written(folder: Path) -> int:
    """Bytes in the hidden file so far; a hidden file may also be there for a moment only, as a probe."""
    with suppress(FileNotFoundError):
        return sum(path.stat().st_size for path in folder.glob(".clip.mp4.*.part"))
    return 0


@pytest.mark.parametrize("keep", [False, True])
def test_interrupted(vae: Path, tmp_path: Path, keep: bool) -> None:
    source = comfy_latent(tmp_path / "long.latent", raw(4000))
    command = [
        sys.executable, "-m", "wan", "decode", source, "--vae", vae, "--out", tmp_path / "clip.mp4",
        *(["--keep-partial"] if keep else []),
    ]  # fmt: skip
    with subprocess.Popen(
        [str(part) for part in command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        while written(tmp_path) < 10_000 and process.poll() is None:  # frames, not only the head
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().splitlines()
        assert process.wait(60) == 130, told
    assert told[-1] == "interrupted; no broken file was left"
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == (["clip_partial.mp4", "long.latent"] if keep else ["long.latent"])
    if keep:
        with av.open(str(tmp_path / "clip_partial.mp4")) as container:
            count = sum(1 for _ in container.decode(video=0))
        assert told[-2] == f"kept the first {count} frames as {tmp_path}/clip_partial.mp4"


def refusal(capsys, *arguments: object, code: int = 2) -> str:
    """The one sentence with which the command refuses."""
    try:
        got = main(["decode", *map(str, arguments)])
    except SystemExit as stop:
        got = stop.code
    told = capsys.readouterr()
    assert (got, told.out) == (code, "")
    lines = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert lines == [told.err.splitlines()[-1]]
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--fps", 0], "fps=0.0 is not a positive number"),
        (["--crf", 60], "crf=60 is not within 0 to 51"),
        (["--format", "avi"], "invalid choice: 'avi'"),
        (["--format", "png-sequence"], "clip.mp4 is no name for format png-sequence; use a folder"),
        (["--out", "FOLDER/clip.avi"], "clip.avi is neither an mp4 nor a folder name; end it in .mp4"),
        (["--out", "FOLDER/clip", "--format", "h265-mp4"], "clip is no name for format h265-mp4; end"),
        (["--out", "FOLDER/no/clip.mp4"], "no does not exist; create it first"),
        (["--out", "FOLDER/full"], "it exists and is not an empty folder"),
        (["--contact-sheet", "FOLDER/clip.mp4"], "two outputs have the same name"),
        (["--audio", "FOLDER/no.wav"], "no.wav does not exist"),
        (["--audio", "FOLDER/a.latent"], "a.latent is not sound that can be read"),
        (["--clip", 2], "clip=2 is not within 1 to 1"),
        (["--device", "toaster"], "device='toaster' cannot be used here"),
        (["--vae", "FOLDER/no.safetensors"], "no.safetensors does not exist"),
        (["--vae", "FOLDER/a.latent"], "a.latent"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_before_any_weight_is_read(
    vae: Path, tmp_path: Path, capsys, monkeypatch, arguments: list, sentence: str
) -> None:
    monkeypatch.setattr(decoding, "load_decoder", lambda *_, **__: pytest.fail("weights were read"))
    source = comfy_latent(tmp_path / "a.latent", raw())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    given = [str(argument).replace("FOLDER", str(tmp_path)) for argument in arguments]
    known = [source, "--vae", vae, "--out", tmp_path / "clip.mp4"]
    assert sentence in refusal(capsys, *known, *given)
    assert sorted(tmp_path.rglob("*")) == before


def spoilt() -> torch.Tensor:
    latents = raw()
    latents[0, 0, 2, 0, 0] = float("inf")
    return latents


@pytest.mark.parametrize(
    ("latents", "code", "sentence"),
    [
        (raw(batch=2), 2, "the file holds 2 clips; choose one by --clip 1 to 2"),
        (raw(channels=48), 2, "the latents have 48 channels, vae.safetensors has 16"),
        (raw()[:, :, :0], 2, "hold no frame; use at least one latent frame"),
        (raw()[0, 0], 2, "holds no latents; use a file of `generate --save-latents`"),
        (spoilt(), 1, "latent frame 3 of 3 holds NaN or infinity"),
    ],
    ids=["batch", "channels", "empty", "shape", "nan"],
)
def test_bad_latents(vae: Path, tmp_path: Path, capsys, latents, code: int, sentence: str) -> None:
    source = comfy_latent(tmp_path / "a.latent", latents)
    arguments = [source, "--vae", vae, "--out", tmp_path / "clip.mp4"]
    assert sentence in refusal(capsys, *arguments, code=code)
    assert list(tmp_path.iterdir()) == [source]


def test_files_that_are_no_latents(vae: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "clip.mp4"
    for source, sentence in [
        (vae, "holds no latents"),
        (tmp_path / "no.latent", "does not exist"),
        (tmp_path, "is a folder"),
    ]:
        assert sentence in refusal(capsys, source, "--vae", vae, "--out", out)
    foreign = comfy_latent(tmp_path / "a.latent", raw())
    assert "where their VAE is; name it by --vae" in refusal(capsys, foreign, "--out", out)
    made = comfy_latent(tmp_path / "b.latent", raw(), wan=json.dumps({"weights": {"vae": "x.pth"}}))
    assert "(they were made with x.pth); name it by --vae" in refusal(capsys, made, "--out", out)
    odd = comfy_latent(tmp_path / "c.latent", raw(), wan="{no json")
    run(capsys, odd, "--vae", vae, "--out", out)


def test_a_contact_sheet_that_does_not_fit_leaves_the_clip(vae: Path, tmp_path, capsys) -> None:
    source = comfy_latent(tmp_path / "a.latent", raw())
    out, sheet = tmp_path / "clip.mp4", tmp_path / "sheet.png"
    arguments = [source, "--vae", vae, "--out", out, "--crf", 51, "--contact-sheet", sheet]
    with files_end_at(15_000):
        told = refusal(capsys, *arguments)
    assert told == f"cannot write {sheet} (File too large); make room there"
    assert sorted(tmp_path.iterdir()) == [source, out]


def test_a_full_disk(vae: Path, tmp_path: Path, capsys) -> None:
    source = comfy_latent(tmp_path / "a.latent", raw(20))
    arguments = ["decode", source, "--vae", vae, "--out", tmp_path / "clip.mp4", "--keep-partial"]
    with files_end_at(3000):
        code = main([str(argument) for argument in arguments])
    assert code == 2
    assert "clip.mp4 (File too large); make room there" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [source]


def test_saved_latents_hold_what_was_sampled(parts, tmp_path: Path) -> None:
    latents = tmp_path / "a.latent"
    arguments = ["--prompt", "x", "--models", parts["high"].parent, "--frames", 1]
    arguments += ["--out", tmp_path / "a.mp4", "--save-latents", latents]
    assert main(["generate", *map(str, arguments)]) == 0
    assert load_file(latents)["latent_tensor"].shape == (1, 16, 1, 4, 6)
