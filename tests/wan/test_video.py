"""The mp4 writer, read back: frames, tags, layout; and every bad input, told before a file exists."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor
from wanexperts.tests.wan.clips import (
    CLIP,
    HEIGHT,
    WIDTH,
    boxes,
    mp4_tags,
    read,
    read_planes,
    smooth,
    unprivileged_folder,
    write_then_raise,
)
from wanexperts.wan.config import EncodingConfig
from wanexperts.wan.video import Clip, VideoWriter, check_writable, write_video


def test_file_holds_what_was_written(tmp_path: Path) -> None:
    frames = smooth(9)
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, CLIP) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:5])
        writer.write(frames[5:])
    assert writer.frames == 9
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (stream.frames, stream.average_rate) == (9, 16)
        assert (context.width, context.height) == (WIDTH, HEIGHT)
        assert float(container.duration / av.time_base) == pytest.approx(9 / 16, abs=1e-3)
    assert len(read(path)) == 9
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_short_clips_are_files(tmp_path: Path, codec: str, count: int) -> None:
    path = tmp_path / "short.mp4"
    for _ in range(3):  # what x265 leaves unset is not the same every time
        with VideoWriter(path, CLIP, encoding=EncodingConfig(codec=codec)) as writer:
            writer.write(smooth(count))
        assert len(read(path)) == count
        with av.open(str(path)) as container:
            assert container.duration / av.time_base == pytest.approx(count / 16, abs=1e-3)


@pytest.mark.parametrize(
    ("colour", "stored"),
    [
        ((255, 0, 0), (63, 102, 240)),
        ((0, 255, 0), (173, 42, 26)),
        ((255, 255, 255), (235, 128, 128)),
        ((0, 0, 0), (16, 128, 128)),
    ],
)
def test_colours_use_the_matrix_that_is_tagged(tmp_path: Path, colour, stored) -> None:
    frames = torch.tensor(colour, dtype=torch.uint8).expand(2, HEIGHT, WIDTH, 3)
    path = tmp_path / "clip.mp4"
    write_video(path, frames, 8)
    for plane, value in zip(read_planes(path), stored, strict=True):
        assert (plane - value).abs().max() <= 1


def test_index_lies_before_the_frames_and_metadata_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    graph = {"3": {"class_type": "X", "inputs": {"text": "红色 “圆”", "seed": 1}}}
    metadata = {"prompt": json.dumps(graph), "workflow": graph, "note": "a red circle, 红色"}
    write_video(path, smooth(3), Fraction(24000, 1001), metadata)
    order = list(boxes(path.read_bytes()))
    assert order.index("moov") < order.index("mdat")
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)
        assert json.loads(container.metadata["prompt"]) == graph
        assert json.loads(container.metadata["workflow"]) == graph
        assert container.metadata["note"] == "a red circle, 红色"


def test_the_frontend_finds_the_graph(tmp_path: Path) -> None:
    """Also one that browsers' JSON cannot hold: ComfyUI's prompts may have NaN in them."""
    path = tmp_path / "clip.mp4"
    graph = {"1": {"is_changed": [float("nan")], "half": "\ud800", "big": "x" * 100_000}}
    write_video(path, smooth(3), 16, {"prompt": graph, "workflow": {"nodes": []}, "note": "\ud800"})
    tags = mp4_tags(path, first_bytes=path.stat().st_size // 2 + 100_000)

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    told = json.loads(tags["prompt"], parse_constant=refuse)
    assert told["1"] == graph["1"] | {"is_changed": [None]}
    assert json.loads(tags["workflow"]) == {"nodes": []}
    assert tags["note"] == "?"


def test_rate_factor_and_preset_reach_the_encoder(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (4, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    sizes = {}
    for crf, preset in ((4, "medium"), (40, "medium"), (4, "ultrafast")):
        path = tmp_path / f"{crf}{preset}.mp4"
        with VideoWriter(path, CLIP, encoding=EncodingConfig(crf=crf, preset=preset)) as writer:
            writer.write(noise)
        sizes[crf, preset] = path.stat().st_size
    assert sizes[4, "medium"] > 2 * sizes[40, "medium"]
    assert sizes[4, "medium"] != sizes[4, "ultrafast"]


def test_caller_may_reuse_its_buffer(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    buffer = torch.empty(4, HEIGHT, WIDTH, 3, dtype=torch.uint8)
    with VideoWriter(path, CLIP) as writer:
        for value in (40, 120, 200):
            writer.write(buffer.fill_(value))
    means = read(path).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(means[::4], torch.tensor([40.0, 120.0, 200.0]), rtol=0, atol=3)


def test_existing_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        write_then_raise(VideoWriter(path, CLIP), RuntimeError())
    assert path.read_bytes() == b"old"
    write_video(path, smooth(3), 16)
    assert len(read(path)) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_no_frames_is_an_error_without_a_file(tmp_path: Path) -> None:
    for codec in ("libx264", "libx265"):
        with (
            pytest.raises(ValueError, match="no frame was written"),
            VideoWriter(tmp_path / "clip.mp4", CLIP, encoding=EncodingConfig(codec=codec)),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"width": 0}, "a clip of 0x48 has no pixel"),
        ({"fps": 0}, "fps=0 is not a positive number"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": float("inf")}, "fps=inf"),
        ({"metadata": {"prompt": object()}}, "metadata 'prompt' is not JSON"),
    ],
)
def test_bad_clips_are_refused(changed: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(CLIP, **changed)
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ValueError, match="metadata 'workflow' is not JSON"):
        replace(CLIP, metadata={"workflow": loop})


@pytest.mark.parametrize(
    ("clip", "encoding", "sentence"),
    [
        ({"width": 63}, {}, "width=63 is not even, yuv420p needs it; use 62"),
        ({"height": 1}, {}, "height=1 is not even, yuv420p needs it; use 2"),
        ({"width": 63}, {"pixel_format": "yuv422p"}, "width=63 is not even, yuv422p"),
        (
            {"width": 48},
            {"codec": "libx265"},
            "48x48 is too small for 'libx265', .* 64x16; use 'lib",
        ),
        ({"height": 8}, {"codec": "libx265"}, "64x8 is too small for 'libx265'"),
        ({}, {"codec": "h266x"}, "no encoder is called 'h266x' here; use 'libx264'"),
        ({}, {"codec": "aac"}, "'aac' does not encode video; use 'libx264'"),
        ({}, {"codec": "gif"}, "'gif' cannot write pixel format 'yuv420p'; use another codec"),
        ({}, {"pixel_format": "rgb24"}, "cannot write pixel format 'rgb24'; use yuv420p or "),
        ({}, {"crf": 52}, "crf=52 is not within 0 to 51; use 16"),
        ({}, {"crf": -1}, "crf=-1 is not within 0 to 51"),
    ],
)
def test_bad_settings_are_refused_before_a_file_exists(
    tmp_path: Path, clip: dict, encoding: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        VideoWriter(
            tmp_path / "clip.mp4", replace(CLIP, **clip), encoding=EncodingConfig(**encoding)
        )
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_fit_where_colours_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    encoding = EncodingConfig(pixel_format="yuv444p")
    with VideoWriter(path, Clip(width=63, height=47, fps=16), encoding=encoding) as writer:
        writer.write(smooth(3, 47, 63))
    assert read(path).shape == (3, 47, 63, 3)


@pytest.mark.parametrize(
    "encoding",
    [
        EncodingConfig(preset="quickest"),
        EncodingConfig(codec="libx265", preset="quickest"),
        EncodingConfig(codec="utvideo"),  # no mp4 may hold it
    ],
)
def test_codec_that_cannot_run_is_refused_at_open(tmp_path: Path, encoding) -> None:
    with (
        pytest.raises(ValueError, match="cannot write an mp4"),
        VideoWriter(tmp_path / "clip.mp4", CLIP, encoding=encoding),
    ):
        pytest.fail("opened")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 48, 64, 3),
        torch.zeros(1, 48, 64, 3, dtype=torch.uint16),
        torch.zeros(1, 3, 48, 64, dtype=torch.uint8),
        torch.zeros(48, 64, 3, dtype=torch.uint8),
        torch.zeros(1, 64, 48, 3, dtype=torch.uint8),
    ],
)
def test_wrong_frames_are_refused(tmp_path: Path, frames: Tensor) -> None:
    with (
        pytest.raises(ValueError, match=r"not a run of frames|do not fit"),
        VideoWriter(tmp_path / "clip.mp4", CLIP) as writer,
    ):
        writer.write(frames)
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_folder_as_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        check_writable(tmp_path / "no" / "clip.mp4")
    with pytest.raises(OSError, match="folder"):
        check_writable(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="does not exist; create it first"):
        write_video(tmp_path / "file" / "clip.mp4", smooth(1), 16)
    check_writable(tmp_path / "clip.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folder_without_permission() -> None:
    with unprivileged_folder() as folder:
        sentence = "no permission to write in .*; choose another folder"
        with pytest.raises(PermissionError, match=sentence):
            check_writable(folder / "clip.mp4")
        with pytest.raises(PermissionError, match=sentence):
            write_video(folder / "clip.mp4", smooth(1), 16)
