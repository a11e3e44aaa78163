"""Sound in the mp4: there, in step, as long as the clip; and sound that cannot be written."""

from __future__ import annotations

import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor
from wanexperts.tests.wan.clips import CLIP, FPS, read, smooth
from wanexperts.wan.video import Audio, VideoWriter, read_audio

AAC_FRAME = 1024


def tone(seconds: float, rate: int = 44100, channels: int = 1, hertz: float = 440) -> Audio:
    """A sine, louder by channel."""
    time = torch.arange(int(seconds * rate)) / rate
    wave_ = torch.sin(2 * torch.pi * hertz * time)
    loudness = torch.linspace(0.2, 0.8, channels)[:, None]
    return Audio(waveform=loudness * wave_, sample_rate=rate)


def sound(path: Path) -> tuple[Tensor, int]:
    """(channels, samples) and rate of a file's sound."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        pieces = [frame.to_ndarray() for frame in container.decode(stream)]
        return torch.from_numpy(np.concatenate(pieces, axis=1)), int(stream.rate)


def write(path: Path, audio: Audio, frames: int = 24) -> Path:
    with VideoWriter(path, replace(CLIP, audio=audio)) as writer:
        writer.write(smooth(frames))
    return path


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_sound_comes_back(tmp_path: Path, channels: int) -> None:
    audio = tone(1.5, channels=channels)
    path = write(tmp_path / "clip.mp4", audio)
    got, rate = sound(path)
    assert (got.shape[0], rate) == (channels, 44100)
    assert len(read(path)) == 24
    shared = min(got.shape[1], audio.waveform.shape[1])
    wanted = audio.waveform[:, :shared]
    # The encoder settles within its first frames. Measured: 1.5 to 2.3 % of the tone.
    body = slice(4 * AAC_FRAME, shared - 2 * AAC_FRAME)
    # The fourth of 5.1 is for low notes alone.
    kept = [channel for channel in range(channels) if channel != 3]
    wanted = wanted[kept, body]
    assert (got[kept, body] - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("seconds", [0.0, 0.4, 1.5, 7.0], ids=["empty", "short", "same", "long"])
def test_sound_is_as_long_as_the_clip(tmp_path: Path, seconds: float) -> None:
    path = write(tmp_path / "clip.mp4", tone(seconds, rate=48000))
    got, _ = sound(path)
    assert abs(got.shape[1] - 24 / FPS * 48000) <= AAC_FRAME
    with av.open(str(path)) as container:
        assert float(container.duration / av.time_base) == pytest.approx(24 / FPS, abs=0.03)
    if seconds < 1.5:
        assert got[:, int((seconds + 0.1) * 48000) :].abs().max() < 1e-3


def test_sound_lies_beside_its_frames(tmp_path: Path) -> None:
    """A player that reads from the start finds both: no track waits for the end of the other."""
    path = write(tmp_path / "clip.mp4", tone(10), frames=160)
    with av.open(str(path)) as container:
        order = [
            (packet.stream.type, float(packet.dts * packet.time_base))
            for packet in container.demux()
            if packet.dts is not None
        ]
    latest = {"audio": 0.0, "video": 0.0}
    for kind, time in order:
        latest[kind] = time
        assert abs(latest["audio"] - latest["video"]) < 0.5  # measured 0.17 s


@pytest.mark.parametrize("rate", [8000, 22050, 96000, 12345, 192000])
def test_any_rate_is_written(tmp_path: Path, rate: int) -> None:
    got, stored = sound(write(tmp_path / "clip.mp4", tone(1.5, rate=rate)))
    assert stored == (rate if rate in (8000, 22050, 96000) else 48000)
    assert abs(got.shape[1] / stored - 24 / FPS) < 0.15
    spectrum = torch.fft.rfft(got[0, : stored // 2]).abs()
    assert int(spectrum.argmax()) * 2 == pytest.approx(440, abs=4)


def test_loud_and_half_precision_sound_is_clipped_and_written(tmp_path: Path) -> None:
    audio = tone(1.5)
    loud = replace(audio, waveform=(audio.waveform * 50).half())
    got, _ = sound(write(tmp_path / "clip.mp4", loud))
    # An edge rings in AAC; the sound that came in reached 10.
    assert 0.8 < got.abs().max() < 2.5


def wav(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(22050)
        file.writeframes((tone(1, 22050, 2).waveform.T * 32767).short().numpy().tobytes())
    return path


def test_sound_of_a_file(tmp_path: Path) -> None:
    audio = read_audio(wav(tmp_path / "a.wav"))
    assert (audio.sample_rate, tuple(audio.waveform.shape)) == (22050, (2, 22050))
    torch.testing.assert_close(audio.waveform, tone(1, 22050, 2).waveform, rtol=0, atol=1e-4)
    again = read_audio(write(tmp_path / "clip.mp4", audio))
    assert again.sample_rate == 22050
    assert again.waveform.shape[1] / 22050 == pytest.approx(24 / FPS, abs=0.1)


def empty_file(folder: Path) -> Path:
    (folder / "empty.wav").touch()
    return folder / "empty.wav"


def silent_film(folder: Path) -> Path:
    with VideoWriter(folder / "silent.mp4", CLIP) as writer:
        writer.write(smooth(2))
    return folder / "silent.mp4"


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda folder: folder / "no.wav", FileNotFoundError, "no.wav does not exist; check"),
        (lambda folder: folder, ValueError, "is not sound that can be read"),
        (empty_file, ValueError, "is not sound that can be read"),
        (silent_film, ValueError, "silent.mp4 holds no sound; use an audio file"),
    ],
)
def test_files_without_sound_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence):
        read_audio(make(tmp_path))


@pytest.mark.parametrize(
    ("waveform", "rate", "sentence"),
    [
        (torch.zeros(2, 1, 100), 44100, r"audio of shape \(2, 1, 100\) is not \(channels, samples\)"),
        (torch.zeros(3, 100), 44100, r"of shape \(3, 100\) is not .* 1, 2 or 6 channels"),
        (torch.zeros(1, 100), 0, "sample_rate=0 is not positive"),
        (torch.full((1, 100), float("nan")), 44100, "holds NaN or infinity"),
    ],
)  # fmt: skip
def test_sound_that_is_none_is_refused(waveform: Tensor, rate: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Audio(waveform=waveform, sample_rate=rate)
