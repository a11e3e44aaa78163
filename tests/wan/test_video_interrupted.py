"""Decoding and encoding side by side, and runs that end early: the finished part or nothing, no leaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from wanexperts.tests.wan.clips import (
    CLIP,
    HEIGHT,
    WIDTH,
    files_end_at,
    mp4_tags,
    png_tags,
    read,
    smooth,
    write_then_raise,
)
from wanexperts.wan.config import EncodingConfig
from wanexperts.wan.video import (
    FORMATS,
    Audio,
    Clip,
    FrameWriter,
    SequenceWriter,
    VideoWriter,
    frame_name,
    open_writer,
)

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 20.0
"""Seconds after which a thread that should have gone on has not."""


@contextmanager
def nothing_leaks() -> Iterator[None]:
    """The block ends with the threads and open files it began with."""
    before = set(threading.enumerate()), set(os.listdir("/proc/self/fd"))
    yield
    assert set(threading.enumerate()) <= before[0]
    assert len(os.listdir("/proc/self/fd")) <= len(before[1])


class Slow(VideoWriter):
    """An encoder that starts each frame by ``wait``."""

    wait: Callable[[], None]

    def _add(self, frame) -> None:
        self.wait()
        super()._add(frame)


def test_decoding_goes_on_while_a_frame_is_encoded(tmp_path: Path) -> None:
    """Each side waits for the other: one after the other they would stand still."""
    encoding, decoded = threading.Event(), threading.Event()
    met = []

    def encode() -> None:
        encoding.set()
        met.append(decoded.wait(PATIENCE))

    with Slow(tmp_path / "clip.mp4", CLIP) as writer:
        writer.wait = encode
        writer.write(smooth(1))
        met.append(encoding.wait(PATIENCE))  # the encoder is within frame 1
        writer.write(smooth(4))  # and the decoder gives the next ones
        decoded.set()
    assert met == [True] * 6
    assert len(read(tmp_path / "clip.mp4")) == 5


def test_the_decoder_waits_for_a_slow_encoder(tmp_path: Path) -> None:
    """Frames in memory stay few, however many there are."""
    go, full = threading.Event(), threading.Event()

    def encode() -> None:
        go.wait(PATIENCE)

    with Slow(tmp_path / "clip.mp4", CLIP) as writer:
        writer.wait = encode

        def decode() -> None:
            writer.write(smooth(100))
            full.set()

        decoder = threading.Thread(target=decode)
        decoder.start()
        assert not full.wait(0.5)
        assert writer.frames < 12
        go.set()
        decoder.join()
    assert len(read(tmp_path / "clip.mp4")) == 100


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_run_leaves_nothing(
    tmp_path: Path, format: str, error: type[BaseException]
) -> None:
    with nothing_leaks(), pytest.raises(error):
        write_then_raise(open_writer(tmp_path / "clip", CLIP, format=format), error())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [1, 2, 5, 40])
@pytest.mark.parametrize("format", FORMATS)
def test_the_finished_part_is_kept_if_wanted(
    tmp_path: Path, caplog, format: str, count: int
) -> None:
    sequence = format.startswith("png")
    sound = None if sequence else Audio(waveform=torch.zeros(1, 99000), sample_rate=8000)
    clip = Clip(width=WIDTH, height=HEIGHT, fps=16, metadata={"workflow": {"a": 1}}, audio=sound)
    path = tmp_path / ("clip_00001" if sequence else "clip_00001_.mp4")
    named = tmp_path / ("clip_00001_partial" if sequence else "clip_00001_partial.mp4")
    with nothing_leaks(), pytest.raises(KeyboardInterrupt):
        write_then_raise(
            open_writer(path, clip, format=format, keep_partial=True), KeyboardInterrupt(), count
        )
    assert list(tmp_path.iterdir()) == [named]
    assert caplog.messages == [f"kept the first {count} frames as {named}"]
    if sequence:
        assert len(list(named.iterdir())) == count
        assert png_tags(named / frame_name(count)) == {"workflow": '{"a": 1}'}
    else:
        assert len(read(named)) == count
        assert mp4_tags(named)["workflow"] == '{"a": 1}'


@pytest.mark.parametrize("format", ["h264-mp4", "png-sequence"])
def test_a_kept_part_replaces_nothing(tmp_path: Path, format: str) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError):
            write_then_raise(
                open_writer(tmp_path / "clip.x", CLIP, format=format, keep_partial=True),
                RuntimeError(),
                2,
            )
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["clip_partial.x", "clip_partial_2.x", "clip_partial_3.x"]


def test_nothing_is_kept_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        write_then_raise(
            VideoWriter(tmp_path / "clip.mp4", CLIP, keep_partial=True), RuntimeError(), 0
        )
    assert list(tmp_path.iterdir()) == []


def noise(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, HEIGHT, WIDTH, 3), dtype=torch.uint8)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("count", [3, 300], ids=["at-the-end", "on-the-way"])
@pytest.mark.parametrize(
    "make",
    [
        lambda folder, keep: VideoWriter(
            folder / "clip", CLIP, encoding=EncodingConfig(crf=1), keep_partial=keep
        ),
        lambda folder, keep: VideoWriter(
            folder / "clip", CLIP, encoding=EncodingConfig(codec="libx265", crf=1), keep_partial=keep
        ),
        lambda folder, keep: SequenceWriter(folder / "clip", CLIP, keep_partial=keep),
    ],
    ids=["h264", "h265", "png"],
)  # fmt: skip
def test_a_full_disk_is_one_sentence(
    tmp_path: Path, make: Callable[[Path, bool], FrameWriter], count: int, keep: bool
) -> None:
    def run() -> None:
        with make(tmp_path, keep) as writer, files_end_at(5000):
            writer.write(noise(count))
            writer._join()

    sentence = r"cannot write .*/clip \(File too large\); make room there"
    with nothing_leaks(), pytest.raises(OSError, match=sentence):
        run()
    assert list(tmp_path.iterdir()) == []


def test_a_failing_encoder_reaches_the_caller(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("the encoder is broken")

    for count in (1, 90):
        writer = Slow(tmp_path / "clip.mp4", CLIP, keep_partial=True)
        writer.wait = fail
        with nothing_leaks(), pytest.raises(ValueError, match="the encoder is broken"), writer:
            writer.write(smooth(count))
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
from wan.video import Clip, VideoWriter
with VideoWriter(sys.argv[1], Clip(width=64, height=48, fps=16), keep_partial=True) as writer:
    writer.write(torch.zeros(90, 48, 64, 3, dtype=torch.uint8))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_one_hidden_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(root=str(ROOT)), path], check=False, cwd=tmp_path
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    others = [other.name for other in tmp_path.iterdir() if other != path]
    assert len(others) == 1
    assert others[0].startswith(".clip.mp4.")
    assert others[0].endswith(".part")
