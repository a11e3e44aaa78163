"""Saved latents into every format: the files, what other nodes make of them, and runs that end early."""

from __future__ import annotations

import io
import json
import os
import urllib.parse
import urllib.request
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from safetensors.torch import load_file, save_file
from wanexperts import comfy_server
from wanexperts.tests.wan.clips import boxes, files_end_at, mp4_tags, png_tags, psnr, read_planes
from wanexperts.wan.checkpoint import load_vae
from wanexperts.wan.video import (
    FORMATS,
    SEQUENCE_FORMATS,
    Audio,
    Clip,
    VideoWriter,
    frame_name,
    read_png,
    to_frames,
)

from . import random_weights as files
from .graphs import node

pytestmark = pytest.mark.comfy

VAE, LATENT, VIDEO, OTHER, COMPONENTS = "12345"
FRAMES, HEIGHT, WIDTH, FPS = 9, 48, 64, 8
WORKFLOW = {"version": 0.4, "nodes": [], "note": "红色"}
EXTRA = {"extra_pnginfo": {"workflow": WORKFLOW}}


def latents(frames: int = 3, height: int = 6, width: int = 8, batch: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randn(batch, 16, frames, height, width, generator=generator)


def put(host, name: str, raw: torch.Tensor) -> str:
    """A file that core Load Latent lists."""
    save_file(
        {"latent_tensor": raw, "latent_format_version_0": torch.empty(0)},
        host.base / "input" / f"{name}.latent",
    )
    return f"{name}.latent"


def graph_of(host, name: str, raw: torch.Tensor | None = None, **inputs: object) -> dict:
    """Load a VAE and latents, decode them to ``decode/<name>``."""
    file = put(host, name, latents() if raw is None else raw)
    return {
        VAE: node("WanExpertsVAELoader", vae=files.VAE_FILE),
        LATENT: node("LoadLatent", latent=file),
        VIDEO: node(
            "WanExpertsDecodeToVideo",
            vae=(VAE, 0), samples=(LATENT, 0), fps=float(FPS),
            filename_prefix=f"decode/{name}", **inputs,
        ),
    }  # fmt: skip


def run(host, graph: dict) -> dict:
    """Outputs by node id, with a workflow as a browser sends it."""
    outputs = {}
    for event in host.events(graph, EXTRA):
        assert event["type"] not in ("execution_error", "execution_interrupted"), event
        if event["type"] == "executed":
            outputs[event["data"]["node"]] = event["data"]["output"]
    return outputs


def left(host, name: str) -> list[str]:
    """What lies in the output folder under a name, hidden files too."""
    folder = host.output / "decode"
    return sorted(path.name for path in folder.iterdir() if f"{name}_" in path.name)


@pytest.fixture(scope="module")
def decoded(random_models) -> torch.Tensor:
    """The clip by the library: (3, F, H, W) in [-1, 1]."""
    vae = load_vae(random_models / files.VAE / files.VAE_FILE, dtype=torch.float32)
    with torch.no_grad():
        return vae.decode(latents())[0]


CODECS = {"h264-mp4": "h264", "h265-mp4": "hevc", "h265-10bit-mp4": "hevc"}


@pytest.mark.parametrize("format", [None, *CODECS])
def test_mp4_formats(host, decoded, format):
    name = f"clip-{format}"
    inputs = {} if format is None else {"format": format, "crf": 4}
    graph = graph_of(host, name, **inputs)
    output = run(host, graph)[VIDEO]
    assert output["animated"] == [True]
    (saved,) = output["images"]
    path = host.path(saved)
    assert (saved["subfolder"], saved["type"], path.name) == (
        "decode",
        "output",
        f"{name}_00001_.mp4",
    )
    deep = format == "h265-10bit-mp4"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert context.name == CODECS[format or "h264-mp4"]
        assert context.codec_tag == ("hvc1" if context.name == "hevc" else "avc1")
        assert context.pix_fmt == ("yuv420p10le" if deep else "yuv420p")
        assert (stream.frames, stream.average_rate) == (FRAMES, FPS)
        assert (stream.width, stream.height) == (WIDTH, HEIGHT)
        assert stream.duration * stream.time_base == Fraction(FRAMES, FPS)
        assert (context.color_primaries, context.color_trc, context.colorspace) == (1, 1, 1)
        assert context.color_range == 1
    order = list(boxes(path.read_bytes()))
    assert order.index("moov") < order.index("mdat")
    tags = mp4_tags(path)
    assert json.loads(tags["workflow"]) == WORKFLOW
    assert {i: n["inputs"] for i, n in json.loads(tags["prompt"]).items()} == {
        i: n["inputs"] for i, n in graph.items()
    }
    told = json.loads(tags["wan"])
    assert (told["format"], told["fps"]) == (format or "h264-mp4", FPS)
    assert told["crf"] == (4 if format else 16)
    assert told["comfyui"] == host.version
    depth = 10 if deep else 8
    luma = read_planes(path)[0]
    red, green, blue = ((decoded.double() + 1) / 2).unbind(0)
    wanted = (16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)) * 2 ** (depth - 8)
    # Measured on pure noise: 37 dB at crf 16, 46 at crf 4.
    assert psnr(luma, wanted, 2**depth - 1) > (40 if format else 30)
    assert left(host, name) == [path.name]


@pytest.mark.parametrize("format", SEQUENCE_FORMATS)
def test_sequences(host, decoded, format):
    output = run(host, graph_of(host, format, format=format))[VIDEO]
    folder = host.output / "decode" / f"{format}_00001"
    assert sorted(p.name for p in folder.iterdir()) == [frame_name(n + 1) for n in range(FRAMES)]
    frames = to_frames(decoded, SEQUENCE_FORMATS[format])
    for number, frame in enumerate(frames, 1):
        path = folder / frame_name(number)
        # The same arithmetic; rounding of sums may tip a value over a step.
        assert (read_png(path).int() - frame.int()).abs().max() <= (1 if frame.itemsize == 1 else 8)
        assert json.loads(png_tags(path)["workflow"]) == WORKFLOW
    assert not output.get("animated")
    (shown,) = output["images"]
    assert shown["type"] == "temp"
    query = urllib.parse.urlencode(shown)
    with urllib.request.urlopen(f"http://{host.url}/view?{query}", timeout=30) as answer:
        picture = answer.read()
    with av.open(io.BytesIO(picture)) as container:
        sheet = next(container.decode(video=0))
    assert (sheet.width, sheet.height) == (6 * WIDTH, 2 * HEIGHT)


@pytest.mark.parametrize("format", FORMATS)
def test_other_nodes_take_the_video(host, decoded, format):
    name = f"taken-{format}"
    graph = graph_of(host, name, format=format)
    graph[OTHER] = node(
        "SaveVideo", video=(VIDEO, 0), filename_prefix=f"decode/saved-{format}", format="auto",
        codec="auto",
    )  # fmt: skip
    graph[COMPONENTS] = node("GetVideoComponents", video=(VIDEO, 0))
    graph["6"] = node(
        "SaveImage", images=(COMPONENTS, 0), filename_prefix=f"decode/images-{format}"
    )
    graph["7"] = node("PreviewAny", source=(COMPONENTS, 2))
    outputs = run(host, graph)
    assert float(outputs["7"]["text"][0]) == FPS
    images = [read_png(host.path(saved)) for saved in outputs["6"]["images"]]
    assert len(images) == FRAMES
    frames = to_frames(decoded, 8)
    worst = max(
        (a.int() - b.int()).abs().float().mean() for a, b in zip(images, frames, strict=True)
    )
    assert worst < (1.1 if format in SEQUENCE_FORMATS else 16)
    copy = host.path(outputs[OTHER]["images"][0])
    with av.open(str(copy)) as container:
        stream = container.streams.video[0]
        assert sum(1 for _ in container.decode(video=0)) == FRAMES
        # An mp4 is copied as it is, a sequence encoded as core does.
        assert stream.codec_context.name == CODECS.get(format, "h264")
        assert (stream.average_rate, stream.width) == (FPS, WIDTH)
    assert json.loads(mp4_tags(copy)["workflow"]) == WORKFLOW


def film_with_sound(host) -> str:
    """A file in the input folder, with 5 seconds of a tone."""
    tone = torch.sin(torch.arange(5 * 22050) * 0.125).expand(2, -1) / 2
    audio = Audio(waveform=tone, sample_rate=22050)
    path = host.base / "input" / "film.mp4"
    with VideoWriter(path, Clip(width=16, height=16, fps=8, audio=audio)) as writer:
        writer.write(torch.zeros(40, 16, 16, 3, dtype=torch.uint8))
    return path.name


def test_sound_from_another_node(host):
    graph = graph_of(host, "sound", audio=("6", 1), format="h265-mp4")
    graph[OTHER] = node("LoadVideo", file=film_with_sound(host))
    graph["6"] = node("GetVideoComponents", video=(OTHER, 0))
    graph[COMPONENTS] = node("GetVideoComponents", video=(VIDEO, 0))
    path = host.path(run(host, graph)[VIDEO]["images"][0])
    with av.open(str(path)) as container:
        samples = [frame.to_ndarray() for frame in container.decode(audio=0)]
    assert sum(piece.shape[1] for piece in samples) / 22050 == pytest.approx(FRAMES / FPS, abs=0.1)
    assert max(abs(piece).max() for piece in samples) > 0.3
    graph[VIDEO]["inputs"]["format"] = "png-sequence"
    with pytest.raises(comfy_server.HostError, match="a PNG sequence holds no sound; write an mp4"):
        host.run(graph)
    assert left(host, "sound") == [path.name]


def test_one_latent_frame_is_a_still_and_a_video_of_one_frame(host):
    raw = latents(frames=1)
    graph = graph_of(host, "still", raw)
    graph[OTHER] = node("WanExpertsDecode", vae=(VAE, 0), samples=(LATENT, 0))
    graph[COMPONENTS] = node("SaveImage", images=(OTHER, 0), filename_prefix="decode/stillimage")
    outputs = run(host, graph)
    (image,) = outputs[COMPONENTS]["images"]
    assert read_png(host.path(image)).shape == (HEIGHT, WIDTH, 3)
    with av.open(str(host.path(outputs[VIDEO]["images"][0]))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 1


def test_a_long_clip_has_no_seam(host, random_models):
    """101 frames: those of one pass over the whole clip."""
    raw = latents(frames=26)
    run(host, graph_of(host, "long", raw, format="png16-sequence"))
    vae = load_vae(random_models / files.VAE / files.VAE_FILE, dtype=torch.float32)
    with torch.no_grad():
        wanted = to_frames(vae.decode_whole(raw)[0], 16)
    folder = host.output / "decode" / "long_00001"
    assert len(list(folder.iterdir())) == len(wanted) == 101
    for number, frame in enumerate(wanted, 1):
        got = read_png(folder / frame_name(number))
        # A stream and one pass add in another order: measured 1 of 65535.
        assert (got.int() - frame.int()).abs().max() <= 4


def test_progress_counts_latent_frames(host):
    events = [
        event["data"]
        for event in host.events(graph_of(host, "progress", latents(frames=4)))
        if event["type"] == "progress" and event["data"]["node"] == VIDEO
    ]
    # A host that was told often within a moment passes on only some of it.
    values = [event["value"] for event in events]
    assert values == sorted(values)
    assert values[-1] == 4
    assert {event["max"] for event in events} == {4}


@pytest.mark.parametrize("format", ["h264-mp4", "h265-mp4", "png-sequence"])
def test_an_interrupted_decode_keeps_the_finished_part(host, format):
    name = f"interrupted-{format}"
    graph = graph_of(host, name, latents(frames=60, height=16, width=16), format=format)
    asked, ended = 0, ""
    for event in host.events(graph, EXTRA):
        if event["type"] == "progress" and event["data"]["node"] == VIDEO and not asked:
            asked = event["data"]["value"]
            if asked:
                host.post("/interrupt", {})
        ended = event["type"]
    assert ended == "execution_interrupted"
    (kept,) = left(host, name)
    path = host.output / "decode" / kept
    if format == "png-sequence":
        assert kept == f"{name}_00001_partial"
        count = len(list(path.iterdir()))
        assert json.loads(png_tags(path / frame_name(1))["workflow"]) == WORKFLOW
    else:
        assert kept == f"{name}_00001_partial.mp4"
        assert json.loads(mp4_tags(path)["workflow"]) == WORKFLOW
        with av.open(str(path)) as container:
            count = sum(1 for _ in container.decode(video=0))
    # Whole latent frames, from the one that was seen on, and not the clip.
    assert count % 4 == 1
    assert 4 * asked - 3 <= count < 4 * 60 - 3
    assert f"kept the first {count} frames as {path}" in host.log.read_text()
    # The number of the kept part is not used again.
    graph[LATENT]["inputs"]["latent"] = put(host, f"{name}-again", latents())
    run(host, graph)
    after = [entry for entry in left(host, name) if "00002" in entry]
    assert len(after) == 1


def spoilt(frame: int) -> torch.Tensor:
    raw = latents()
    raw[0, 5, frame, 2, 3] = float("nan")
    return raw


BAD = {
    "nan": (spoilt(1), {}, "latent frame 2 of 3 holds NaN or infinity"),
    "no-frame": (latents()[:, :, :0], {}, "hold no frame; use at least one latent frame"),
    "no-pixel": (latents()[..., :0], {}, "hold no frame; use at least one latent frame"),
    "batch": (latents(batch=2), {}, "the latents hold 2 clips, one file holds one"),
    "channels": (torch.zeros(1, 48, 3, 6, 8), {}, "which has 16 channels"),
    "image": (torch.zeros(1, 4, 6, 8), {}, "which has 16 channels"),
}


@pytest.mark.parametrize(("raw", "inputs", "sentence"), BAD.values(), ids=BAD)
def test_bad_latents_are_one_sentence_and_leave_nothing(host, raw, inputs, sentence):
    graph = graph_of(host, "bad", raw, **inputs)
    with pytest.raises(comfy_server.HostError, match=sentence):
        host.run(graph)
    assert left(host, "bad") == []


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"format": "avi"}, "format='avi' is not one of h264-mp4, h265-mp4"),
        ({"format": "png"}, "format='png' is not one of h264-mp4, h265-mp4"),
        ({"crf": 52}, "crf=52 is not within 0 to 51; use 16"),
        ({"crf": -1, "format": "h265-mp4"}, "crf=-1 is not within 0 to 51"),
    ],
)
def test_bad_settings_are_refused_before_the_run(host, inputs, sentence):
    with pytest.raises(comfy_server.Refused, match=sentence):
        host.run(graph_of(host, "refused", **inputs))
    assert left(host, "refused") == []


@pytest.mark.parametrize("format", ["h264-mp4", "h265-mp4", "png16-sequence"])
def test_a_full_disk_is_one_sentence(host, format):
    """The server may write no file beyond a size, which the clip does not fit in."""
    name = f"full-{format}"
    raw = latents(2, 24, 24) if format == "png16-sequence" else latents(20, 16, 16)
    graph = graph_of(host, name, raw, format=format, crf=0)
    os.truncate(host.log, min(host.log.stat().st_size, 50_000))
    full = pytest.raises(comfy_server.HostError, match=r"cannot write .* make room there")
    with full, files_end_at(150_000, host._process.pid):
        host.run(graph)
    assert left(host, name) == []
    assert run(host, graph)[VIDEO]["images"]


def held(host) -> tuple[int, list[str]]:
    """Threads of the server, and what it holds open of its output folder."""
    process = Path("/proc") / str(host._process.pid)
    links = []
    for link in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            links.append(os.readlink(link))
    open_files = [name for name in links if name.startswith(str(host.output))]
    return len(list((process / "task").iterdir())), open_files


@pytest.mark.parametrize("format", ["h264-mp4", "h265-10bit-mp4", "png16-sequence"])
def test_runs_that_end_early_hold_nothing(host, format):
    name = f"held-{format}"
    long = graph_of(host, name, latents(frames=60, height=16, width=16), format=format)
    bad = graph_of(host, f"{name}_bad", spoilt(0), format=format)
    run(host, graph_of(host, f"{name}_good", format=format))
    before, _ = held(host)
    for _ in range(3):
        for event in host.events(long):
            if event["type"] == "progress" and event["data"]["value"] == 1:
                host.post("/interrupt", {})
        assert event["type"] == "execution_interrupted"
        with pytest.raises(comfy_server.HostError, match="latent frame 1 of 3"):
            host.run(bad)
    threads, open_files = held(host)
    assert open_files == []
    assert threads <= before
    assert not [entry for entry in left(host, name) if entry.endswith(".part")]


def test_nan_on_the_way_names_its_reason(host, random_models):
    """A VAE that overflows."""
    state = load_file(random_models / files.VAE / files.VAE_FILE)
    state["decoder.head.2.bias"] = torch.full_like(state["decoder.head.2.bias"], float("nan"))
    save_file(state, host.base / "models" / files.VAE / "broken_vae.safetensors")
    graph = graph_of(host, "overflow")
    graph[VAE]["inputs"]["vae"] = "broken_vae.safetensors"
    with pytest.raises(comfy_server.HostError, match="the decoded frames hold NaN or infinity"):
        host.run(graph)
    assert left(host, "overflow") == []
