"""Frames as PNG files: every number as it was, readable by others, with the graph in each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from wanexperts.tests.wan.clips import (
    CLIP,
    HEIGHT,
    WIDTH,
    png_tags,
    smooth,
    smooth_video,
    unprivileged_folder,
)
from wanexperts.wan.video import (
    SEQUENCE_FORMATS,
    Audio,
    Clip,
    SequenceWriter,
    check_folder_writable,
    frame_name,
    open_writer,
    read_png,
    to_frames,
)


@pytest.mark.parametrize("format", SEQUENCE_FORMATS)
def test_every_number_comes_back(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "clip"
    noise = torch.rand(3, 13, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with open_writer(folder, CLIP, format=format) as writer:
        frames = to_frames(noise, writer.bits)
        for start in range(0, 13, 4):
            writer.write(frames[start : start + 4])
    assert sorted(path.name for path in folder.iterdir()) == [frame_name(n + 1) for n in range(13)]
    for number, frame in enumerate(frames, 1):
        got = read_png(folder / frame_name(number))
        assert got.dtype == frame.dtype
        assert np.array_equal(got.numpy(), frame.numpy())
    assert list(tmp_path.iterdir()) == [folder]


def test_others_read_the_files(tmp_path: Path) -> None:
    frames = smooth(2)
    with SequenceWriter(tmp_path / "a", CLIP) as writer:
        writer.write(frames)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a" / frame_name(2))), frames[1].numpy())
    deep = to_frames(smooth_video(1), 16)
    with SequenceWriter(tmp_path / "b", CLIP, bits=16) as writer:
        writer.write(deep)
    data = (tmp_path / "b" / frame_name(1)).read_bytes()
    # Width, height, 16 bits, colour type 2 (RGB), as the PNG standard lays them out.
    assert data[16:26] == WIDTH.to_bytes(4, "big") + HEIGHT.to_bytes(4, "big") + bytes([16, 2])
    # Pillow reads 16-bit colour too, and keeps the upper 8 bits.
    seen = np.asarray(Image.open(tmp_path / "b" / frame_name(1)))
    assert np.array_equal(seen, deep[0].numpy() >> 8)


def test_any_frame_restores_the_graph(tmp_path: Path) -> None:
    graph = {"nodes": [], "note": "红色", "changed": float("nan")}
    clip = replace(CLIP, metadata={"workflow": graph, "prompt": "{}", "note": "红色"})
    with SequenceWriter(tmp_path / "clip", clip) as writer:
        writer.write(smooth(3))
    for path in (tmp_path / "clip").iterdir():
        tags = png_tags(path)
        assert json.loads(tags["workflow"]) == graph | {"changed": None}
        assert tags["prompt"] == "{}"
        with Image.open(path) as image:
            image.load()  # checks the sums of every part
            assert image.text["note"] == "红色"


def test_an_empty_folder_is_filled_and_a_full_one_refused(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    with SequenceWriter(folder, CLIP) as writer:
        writer.write(smooth(1))
    for path in (folder, folder / frame_name(1)):
        sentence = "it exists and is not an empty folder; choose another place"
        with pytest.raises(OSError, match=sentence):
            check_folder_writable(path)
        with pytest.raises(OSError, match=sentence):
            SequenceWriter(path, CLIP).__enter__()
    check_folder_writable(tmp_path / "new")
    assert list(tmp_path.iterdir()) == [folder]
    assert len(list(folder.iterdir())) == 1


def test_a_folder_that_filled_meanwhile_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "clip"

    def taken() -> None:
        with SequenceWriter(folder, CLIP) as writer:
            writer.write(smooth(1))
            folder.mkdir()
            (folder / "mine").touch()

    with pytest.raises(OSError, match=r"cannot write .*clip: .*; choose another place"):
        taken()
    assert [path.name for path in tmp_path.rglob("*")] == ["clip", "mine"]


def test_bad_sequences_are_refused_before_a_folder_exists(tmp_path: Path) -> None:
    sound = Audio(waveform=torch.zeros(1, 9), sample_rate=8000)
    with pytest.raises(ValueError, match="a PNG sequence holds no sound; write an mp4 or"):
        SequenceWriter(tmp_path / "clip", replace(CLIP, audio=sound))
    with pytest.raises(ValueError, match="a PNG of 10 bits is not written; use 8 or 16"):
        SequenceWriter(tmp_path / "clip", CLIP, bits=10)
    with pytest.raises(FileNotFoundError, match="does not exist; create it first"):
        SequenceWriter(tmp_path / "no" / "clip", CLIP).__enter__()
    with pytest.raises(ValueError, match="no frame was written"):
        SequenceWriter(tmp_path / "clip", CLIP).__enter__().__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []
    with unprivileged_folder() as folder, pytest.raises(PermissionError, match="no permission"):
        SequenceWriter(folder / "clip", CLIP).__enter__()


def test_odd_sizes_are_no_matter(tmp_path: Path) -> None:
    with SequenceWriter(tmp_path / "clip", Clip(width=5, height=3, fps=1)) as writer:
        writer.write(smooth(2, 3, 5))
    assert read_png(tmp_path / "clip" / frame_name(2)).shape == (3, 5, 3)
