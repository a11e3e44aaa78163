"""Files of the writer in the browser's own player: every frame in its place, its colours, the sound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from wanexperts.wan.video import Audio, Clip, open_writer

from .playback import frame_at, play, show

COLOURS = torch.tensor(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 128, 128],
     [200, 120, 40], [20, 90, 160]], dtype=torch.uint8,
)  # fmt: skip
PATCH, FRAMES, FPS = 32, 24, 24


def bars(count: int) -> torch.Tensor:
    """Bars of all colours, which move on by one bar per frame: (n, H, W, 3)."""
    rows = torch.stack([COLOURS.roll(number, 0) for number in range(count)])
    return rows.repeat_interleave(PATCH, 1)[:, None].expand(-1, 2 * PATCH, -1, -1)


def test_a_file_plays_frame_by_frame_in_its_colours_with_its_sound(page, tmp_path: Path) -> None:
    frames = bars(FRAMES)
    height, width = frames.shape[1:3]
    tone = torch.sin(torch.arange(44100) * 0.06).expand(2, -1) / 2
    audio = Audio(waveform=tone, sample_rate=44100)
    clip = Clip(width=width, height=height, fps=FPS, audio=audio)
    with open_writer(tmp_path / "clip.mp4", clip, crf=1) as writer:
        writer.write(frames)
    video = show(page, tmp_path / "clip.mp4")
    told = play(video)
    assert (told["width"], told["height"]) == (width, height)
    assert told["duration"] == pytest.approx(FRAMES / FPS, abs=0.03)
    assert told["advanced"] > 0.25
    assert told["sound"] > 1000
    worst = torch.zeros(3, dtype=torch.int32)
    for number in (0, 1, 11, 22, 23):
        seen = frame_at(video, (number + 0.5) / FPS)[PATCH, PATCH // 2 :: PATCH]
        wanted = frames[number, PATCH, PATCH // 2 :: PATCH]
        worst = worst.maximum((seen.int() - wanted.int()).abs().amax(0))
    # Measured 1, 1 and 12: Chromium's arithmetic takes 2 for the 2.112 of blue. The matrix of BT.601
    # would cost 22 of red, the other range 16 of everything, a frame too early or late up to 255.
    assert (worst <= torch.tensor([4, 4, 14])).all(), worst
