"""The mp4 writer, read back; and what a failing run leaves behind: nothing."""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor
from wanexperts.wan.config import EncodingConfig
from wanexperts.wan.video import (
    VideoWriter,
    check_writable,
    contact_sheet,
    save_png,
    to_uint8,
    write_video,
)

SIZE = {"width": 64, "height": 48, "fps": 16}


def _smooth(count: int, height: int = 48, width: int = 64) -> Tensor:
    """A slowly moving colour gradient, (n, H, W, 3) uint8."""
    n, y, x = torch.meshgrid(
        torch.linspace(0, 1, count),
        torch.linspace(0, 1, height),
        torch.linspace(0, 1, width),
        indexing="ij",
    )
    return (torch.stack([x, y, (x + n) / 2], dim=-1) * 255).byte()


def _read(path: Path) -> Tensor:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.stack([torch.from_numpy(frame) for frame in frames])


def _write_then_raise(path: Path, error: type[BaseException]) -> None:
    with VideoWriter(path, **SIZE) as writer:
        writer.write(_smooth(40))
        raise error


def _boxes(path: Path) -> list[str]:
    data, names, at = path.read_bytes(), [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        names.append(name.decode())
        at += size
    return names


@contextmanager
def _unprivileged_folder() -> Iterator[Path]:
    """A folder this process may not write in, also when the tests run as root."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        if root:
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(name, 0o755)


def test_file_holds_what_was_written(tmp_path: Path) -> None:
    frames = _smooth(9)
    path = tmp_path / "clip.mp4"
    with VideoWriter(path, **SIZE) as writer:
        writer.write(frames[:1])
        writer.write(frames[1:5])
        writer.write(frames[5:])
    assert writer.frames == 9
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.frames, stream.average_rate) == (9, 16)
        assert (context.width, context.height) == (64, 48)
        colour = context.color_primaries, context.color_trc, context.colorspace
        assert colour == (1, 1, 1)
        assert context.color_range == 1
        assert float(container.duration / av.time_base) == pytest.approx(9 / 16, abs=1e-3)
    error = (_read(path).float() - frames.float()).abs()
    assert error.mean() < 2.5
    assert error.max() < 16
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("colour", "luma"), [((255, 0, 0), 63), ((0, 255, 0), 173), ((255, 255, 255), 235)]
)
def test_colours_use_the_matrix_that_is_tagged(tmp_path: Path, colour, luma: int) -> None:
    frames = torch.tensor(colour, dtype=torch.uint8).expand(2, 48, 64, 3)
    path = tmp_path / "clip.mp4"
    write_video(path, frames, 8)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert abs(int(frame.to_ndarray()[10, 10]) - luma) <= 1
    assert (_read(path).int() - frames.int()).abs().max() <= 3


def test_index_lies_before_the_frames_and_metadata_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    graph = {"3": {"class_type": "X", "inputs": {"text": "红色 “圆”", "seed": 1}}}
    metadata = {"prompt": json.dumps(graph), "workflow": graph, "note": "a red circle"}
    write_video(path, _smooth(3), Fraction(24000, 1001), metadata)
    boxes = _boxes(path)
    assert boxes.index("moov") < boxes.index("mdat")
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)
        assert json.loads(container.metadata["prompt"]) == graph
        assert json.loads(container.metadata["workflow"]) == graph
        assert container.metadata["note"] == "a red circle"


def test_rate_factor_reaches_the_encoder(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (4, 48, 64, 3), dtype=torch.uint8)
    sizes = []
    for crf in (4, 40):
        path = tmp_path / f"{crf}.mp4"
        with VideoWriter(path, **SIZE, encoding=EncodingConfig(crf=crf)) as writer:
            writer.write(noise)
        sizes.append(path.stat().st_size)
    assert sizes[0] > 2 * sizes[1]


def test_caller_may_reuse_its_buffer(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    buffer = torch.empty(4, 48, 64, 3, dtype=torch.uint8)
    with VideoWriter(path, **SIZE) as writer:
        for value in (40, 120, 200):
            writer.write(buffer.fill_(value))
    means = _read(path).float().mean(dim=(1, 2, 3))
    torch.testing.assert_close(means[::4], torch.tensor([40.0, 120.0, 200.0]), rtol=0, atol=3)


def test_existing_file_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        _write_then_raise(path, RuntimeError)
    assert path.read_bytes() == b"old"
    write_video(path, _smooth(3), 16)
    assert len(_read(path)) == 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        _write_then_raise(tmp_path / "clip.mp4", error)
    assert list(tmp_path.iterdir()) == []


def test_failing_encoder_reaches_the_caller(tmp_path: Path, monkeypatch) -> None:
    def full(pixels, index):
        raise OSError("No space left on device")

    monkeypatch.setattr("wanexperts.wan.video._limited_range", full)
    with pytest.raises(OSError, match="No space left"):
        write_video(tmp_path / "clip.mp4", _smooth(90), 16)
    with pytest.raises(OSError, match="No space left"):
        write_video(tmp_path / "clip.mp4", _smooth(1), 16)
    assert list(tmp_path.iterdir()) == []


def test_no_frames_is_an_error_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame was written"):
        write_video(tmp_path / "clip.mp4", _smooth(1)[:0], 16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"width": 63}, "width=63 is not even, H.264 needs it; use 62"),
        ({"height": 0}, "height=0 is not even"),
        ({"fps": 0}, "fps=0 is not a positive number"),
        ({"fps": float("nan")}, "fps=nan"),
        ({"fps": float("inf")}, "fps=inf"),
        (
            {"encoding": EncodingConfig(codec="h266x")},
            "no encoder is called 'h266x'; use 'libx264'",
        ),
        ({"encoding": EncodingConfig(codec="aac")}, "'aac' does not encode video"),
        ({"metadata": {"prompt": object()}}, "metadata 'prompt' is not JSON"),
    ],
)
def test_bad_settings_are_refused_before_a_file_exists(
    tmp_path: Path, changed: dict, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence.replace("(", r"\(")):
        VideoWriter(tmp_path / "clip.mp4", **(SIZE | changed))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "encoding", [EncodingConfig(preset="quickest"), EncodingConfig(codec="gif")]
)
def test_codec_that_cannot_run_is_refused_at_open(tmp_path: Path, encoding) -> None:
    with (
        pytest.raises(ValueError, match="cannot write an mp4"),
        VideoWriter(tmp_path / "clip.mp4", **SIZE, encoding=encoding),
    ):
        pytest.fail("opened")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 48, 64, 3),
        torch.zeros(1, 3, 48, 64, dtype=torch.uint8),
        torch.zeros(48, 64, 3, dtype=torch.uint8),
        torch.zeros(1, 64, 48, 3, dtype=torch.uint8),
    ],
)
def test_wrong_frames_are_refused(tmp_path: Path, frames: Tensor) -> None:
    with (
        pytest.raises(ValueError, match=r"not a run of frames|do not fit"),
        VideoWriter(tmp_path / "clip.mp4", **SIZE) as writer,
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
        write_video(tmp_path / "file" / "clip.mp4", _smooth(1), 16)
    check_writable(tmp_path / "clip.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_folder_without_permission() -> None:
    with _unprivileged_folder() as folder:
        sentence = "no permission to write in .*; choose another folder"
        with pytest.raises(PermissionError, match=sentence):
            check_writable(folder / "clip.mp4")
        with pytest.raises(PermissionError, match=sentence):
            write_video(folder / "clip.mp4", _smooth(1), 16)


def test_to_uint8_truncates_like_the_official_code() -> None:
    values = torch.tensor([-1.5, -1.0, -1 + 1.9 / 127.5, 0.0, 0.999, 1.0, 3.0])
    frames = to_uint8(values.expand(3, 1, 1, -1))
    assert frames.shape == (1, 1, 7, 3)
    assert frames[0, 0, :, 1].tolist() == [0, 0, 1, 127, 254, 255, 255]
    moved = to_uint8(torch.rand(3, 2, 4, 6, dtype=torch.bfloat16))
    assert moved.shape == (2, 4, 6, 3)
    with pytest.raises(FloatingPointError, match="NaN"):
        to_uint8(torch.full((3, 1, 2, 2), float("nan")))


def test_contact_sheet_reads_like_text(tmp_path: Path) -> None:
    frames = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(5, 2, 4, 3)
    sheet = contact_sheet(frames, 3)
    assert sheet.shape == (4, 12, 3)
    assert sheet[::2, ::4, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    path = tmp_path / "sheet.png"
    save_png(path, sheet)
    assert torch.equal(_read(path)[0], sheet)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match="0 frames in 3 columns"):
        contact_sheet(frames[:0], 3)
    with pytest.raises(ValueError, match="in 0 columns"):
        contact_sheet(frames, 0)
    with pytest.raises(ValueError, match="not a run of frames"):
        save_png(path, sheet.float())
