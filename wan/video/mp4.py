"""The mp4: H.264 or H.265, tagged so that every player shows the colours that were made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
from av.error import FFmpegError
from av.video.reformatter import ColorRange

from ..config import EncodingConfig
from .audio import AudioTrack
from .clip import Clip
from .colour import PIXEL_FORMATS, ToPlanes, chroma_steps
from .files import reserve
from .frames import Pixels
from .writer import FrameWriter

BEST_CRF, WORST_CRF = 0, 51
_BT709 = 1
"""The code of BT.709 in all three colour fields of H.264 and H.265: primaries, transfer, matrix."""
_SMALLEST = {"libx265": (64, 16)}
"""Width and height. x265 refuses lower frames and writes beyond its memory for those 40 or 48 wide."""
_LONGEST_DELAY = 64
"""Frames that no encoder holds back more than."""
_ENCODING = EncodingConfig()
_LOOKAHEAD = 7
"""Frames an encoder may wait for. With its own 20 to 40 it would begin only when a short clip is
decoded. The price is up to 1.4 dB at 55 dB, on the smoothest of pictures in 10 bits; others lose
0.1 dB at most and are smaller for it, drawn shapes by 1 %, moving noise by a sixth to a third."""
_OPTIONS = {
    # What x264 keeps for a thread of its own beside that: the same file is ready sooner without.
    "libx264": {"rc-lookahead": str(_LOOKAHEAD), "x264-params": "sync-lookahead=0"},
    "libx265": {"x265-params": f"log-level=error:rc-lookahead={_LOOKAHEAD}"},
}
_TAGS = {"libx265": "hvc1"}
"""Sample entries that players ask for; FFmpeg's own choice for H.265 is unknown to Apple's."""


class VideoWriter(FrameWriter):
    """Streams frames into an mp4, see :class:`FrameWriter`.

    BT.709 in limited range, converted and tagged as such; the index lies before the frames, so that
    readers of a file's beginning find the metadata. An existing file is replaced, at the end.
    """

    def __init__(
        self,
        path: str | Path,
        clip: Clip,
        *,
        encoding: EncodingConfig = _ENCODING,
        keep_partial: bool = False,
    ) -> None:
        """Check everything that needs no file.

        Args:
            path: the mp4 to write; its folder must exist.
            clip: size, rate, tags and sound; sizes as the pixel format needs them.
            encoding: codec, pixel format, rate factor and preset.
            keep_partial: after an error keep the finished part beside ``path``.

        Raises:
            ValueError: odd sizes, an unknown or missing codec, a pixel format it does not have, or
                a rate factor out of range.
        """
        super().__init__(path, clip, keep_partial=keep_partial)
        layout = _check_encoding(encoding)
        _check_size(clip, encoding.codec, layout)
        self.encoding = encoding
        self._to_planes = ToPlanes(layout)
        self.bits = self._to_planes.bits
        self._index = 0

    def _reserve(self) -> Path:
        return reserve(self.path)

    def _begin(self, hidden: Path) -> None:
        options = {"movflags": "use_metadata_tags+faststart"}
        container = av.open(str(hidden), "w", format="mp4", options=options)
        try:
            container.metadata.update(self.clip.tags)
            self._stream = self._add_stream(container)
            self._sound = AudioTrack(container, self.clip.audio) if self.clip.audio else None
            container.start_encoding()
        except (FFmpegError, ValueError) as error:
            with suppress(FFmpegError, OSError):
                container.close()
            raise ValueError(
                f"{self.encoding} cannot write an mp4 ({error}); use codec 'libx264' and preset "
                "'medium'"
            ) from error
        self._container = container

    def _add_stream(self, container: av.container.OutputContainer) -> av.VideoStream:
        encoding = self.encoding
        stream = container.add_stream(encoding.codec, rate=self.clip.rate)
        assert isinstance(stream, av.VideoStream)
        told: dict[str, object] = {"crf": str(encoding.crf), "preset": encoding.preset}
        stream.options = told | _OPTIONS.get(encoding.codec, {})
        stream.width, stream.height = self.clip.width, self.clip.height
        stream.pix_fmt = encoding.pixel_format
        context = stream.codec_context
        # PyAV's own choice, slices, costs H.264 quality.
        context.thread_type = "FRAME"
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        if encoding.codec in _TAGS:
            context.codec_tag = _TAGS[encoding.codec]
        return stream

    def _add(self, frame: Pixels) -> None:
        picture = self._to_planes(frame)
        picture.pts = self._index
        self._index += 1
        self._mux(_with_dts(self._stream.encode(picture)))
        if self._sound:
            self._mux(self._sound.advance(self._index / self.clip.rate))

    def _finish(self) -> None:
        self._mux(_with_dts(self._stream.encode(None)))
        if self._sound:
            self._mux(self._sound.finish())
        self._container.close()

    def _mux(self, packets: Iterable[av.Packet[Any]]) -> None:
        for packet in packets:
            self._container.mux(packet)

    def _close(self) -> None:
        with suppress(FFmpegError, OSError):
            self._container.close()


def _with_dts(packets: Iterable[av.Packet[av.VideoStream]]) -> Iterator[av.Packet[av.VideoStream]]:
    """x265 leaves the decoding time of clips of 1 and 2 frames unset, at whatever memory held."""
    for packet in packets:
        if packet.pts is not None and not 0 <= packet.pts - (packet.dts or 0) <= _LONGEST_DELAY:
            packet.dts = packet.pts
        yield packet


def _check_encoding(encoding: EncodingConfig) -> av.VideoFormat:
    """The layout of the pixels; ValueError if this PyAV cannot encode so."""
    try:
        codec = av.Codec(encoding.codec, "w")
    except (FFmpegError, ValueError) as error:
        raise ValueError(
            f"no encoder is called {encoding.codec!r} here; use 'libx264', or install PyAV from PyPI"
        ) from error
    if codec.type != "video":
        raise ValueError(f"{encoding.codec!r} does not encode video; use 'libx264'")
    layouts = {layout.name: layout for layout in codec.video_formats or ()}
    known = [name for name in PIXEL_FORMATS if name in layouts]
    if encoding.pixel_format not in known:
        raise ValueError(
            f"{encoding.codec!r} cannot write pixel format {encoding.pixel_format!r}; use "
            f"{' or '.join(known) or 'another codec'}"
        )
    if not BEST_CRF <= encoding.crf <= WORST_CRF:
        raise ValueError(f"crf={encoding.crf} is not within {BEST_CRF} to {WORST_CRF}; use 16")
    return layouts[encoding.pixel_format]


def _check_size(clip: Clip, codec: str, layout: av.VideoFormat) -> None:
    """Raise ValueError for sizes below the encoder's, or that the grid of the colours does not divide."""
    width, height = _SMALLEST.get(codec, (1, 1))
    if clip.width < width or clip.height < height:
        raise ValueError(
            f"{clip.width}x{clip.height} is too small for {codec!r}, which needs {width}x{height}; "
            "use 'libx264'"
        )
    for name, step in zip(("height", "width"), chroma_steps(layout), strict=True):
        value = getattr(clip, name)
        if value % step:
            raise ValueError(
                f"{name}={value} is not even, {layout.name} needs it; use {value - 1 or 2}"
            )
