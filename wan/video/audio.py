"""Sound beside the frames: AAC in the mp4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from torch import Tensor

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
_USUAL_RATE = 48000
_BIT_RATE_PER_CHANNEL = 96_000


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Audio:
    """Sound.

    Attributes:
        waveform: (channels, samples) in [-1, 1]; 1, 2 or 6 channels. Louder samples are clipped.
        sample_rate: samples per second.

    Raises:
        ValueError: another shape, NaN or infinity, or a rate that is not positive.
    """

    waveform: Tensor
    sample_rate: int

    def __post_init__(self) -> None:
        """Check it all."""
        shape = tuple(self.waveform.shape)
        if len(shape) != 2 or shape[0] not in LAYOUTS:
            raise ValueError(
                f"audio of shape {shape} is not (channels, samples) of 1, 2 or 6 channels; "
                "use one clip in mono or stereo"
            )
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate={self.sample_rate} is not positive; use 44100 or 48000")
        if not bool(torch.isfinite(self.waveform).all()):
            raise ValueError("the audio holds NaN or infinity; use another recording")


def read_audio(path: str | Path) -> Audio:
    """The first sound track of a file, any that FFmpeg reads.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: it holds no sound, or of more channels than 2 that are not 5.1.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise ValueError(f"{path} holds no sound; use an audio file")
            stream = container.streams.audio[0]
            resampler = av.AudioResampler(format="fltp")
            pieces = [
                piece.to_ndarray()
                for frame in [*container.decode(stream), None]
                for piece in resampler.resample(frame)
            ]
            rate = int(stream.rate or _USUAL_RATE)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist; check the name") from error
    except FFmpegError as error:
        raise ValueError(f"{path} is not sound that can be read ({error.strerror})") from error
    if not pieces:
        raise ValueError(f"{path} holds no sound; use an audio file")
    return Audio(waveform=torch.from_numpy(np.concatenate(pieces, axis=1)), sample_rate=rate)


class AudioTrack:
    """The sound track of a file under way: encoded in step with the frames."""

    def __init__(self, container: av.container.OutputContainer, audio: Audio) -> None:
        """Add the track to a file that has not been started."""
        channels = audio.waveform.shape[0]
        self._rate = audio.sample_rate
        # AAC knows only some rates; the encoder converts.
        stored = self._rate if self._rate in _AAC_RATES else _USUAL_RATE
        stream = container.add_stream("aac", rate=stored, layout=LAYOUTS[channels])
        assert isinstance(stream, av.AudioStream)
        stream.bit_rate = _BIT_RATE_PER_CHANNEL * channels
        self._stream, self._layout = stream, LAYOUTS[channels]
        self._samples = audio.waveform.float().clamp(-1, 1).cpu().numpy()
        self._done = 0

    def advance(self, seconds: Fraction) -> Iterator[av.Packet[av.AudioStream]]:
        """Packets up to this time of the clip; after the end of the sound, silence."""
        end = round(seconds * self._rate)
        if end <= self._done:
            return
        piece = self._samples[:, self._done : end]
        silence = end - self._done - piece.shape[1]
        piece = np.ascontiguousarray(np.pad(piece, ((0, 0), (0, silence))))
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=self._layout)
        frame.sample_rate, frame.pts = self._rate, self._done
        frame.time_base = Fraction(1, self._rate)
        self._done = end
        yield from self._stream.encode(frame)

    def finish(self) -> Iterator[av.Packet[av.AudioStream]]:
        """What the encoder still holds."""
        yield from self._stream.encode(None)
