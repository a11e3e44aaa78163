"""Frames as numbered PNG files in a folder, of 8 or 16 bits, for those who go on editing."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from av.error import FFmpegError

from .clip import Clip
from .files import place_folder, reserve_folder
from .frames import DTYPES, Pixels
from .images import PngEncoder
from .writer import FrameWriter


class SequenceWriter(FrameWriter):
    """Streams frames into ``path/frame_00001.png`` and so on, see :class:`FrameWriter`.

    Lossless, RGB; every file carries the tags. 16 bits hold what the VAE made to 1/65535; there is no
    floating point, which Wan's pixels in [0, 1] do not need.
    """

    def __init__(
        self, path: str | Path, clip: Clip, *, bits: int = 8, keep_partial: bool = False
    ) -> None:
        """Check everything that needs no file.

        Args:
            path: the folder to make; it may exist if it is empty, its parent must.
            clip: size, rate (which a PNG cannot tell) and tags; no sound.
            bits: 8 or 16.
            keep_partial: after an error keep the finished part beside ``path``.

        Raises:
            ValueError: other bits, or sound, which a PNG cannot hold.
        """
        super().__init__(path, clip, keep_partial=keep_partial)
        if bits not in DTYPES:
            raise ValueError(f"a PNG of {bits} bits is not written; use 8 or 16")
        if clip.audio:
            raise ValueError("a PNG sequence holds no sound; write an mp4 or leave the audio out")
        self.bits = bits
        self._files = 0

    def _reserve(self) -> Path:
        return reserve_folder(self.path)

    def _begin(self, hidden: Path) -> None:
        clip = self.clip
        self._folder = hidden
        self._encoder = PngEncoder(
            width=clip.width, height=clip.height, bits=self.bits, tags=clip.tags
        )

    def _add(self, frame: Pixels | None) -> None:
        for data in self._encoder.encode(frame):
            self._files += 1
            self._target().write_bytes(data)

    def _target(self) -> Path:
        """The next frame's file."""
        return self._folder / frame_name(self._files)

    def _finish(self) -> None:
        self._add(None)

    def _close(self) -> None:
        # The encoder's threads end with its last frame; after an error they may still hold some.
        with suppress(FFmpegError, OSError):
            for _ in self._encoder.encode(None):
                pass

    def _place(self, hidden: Path, path: Path) -> None:
        place_folder(hidden, path)


def frame_name(number: int) -> str:
    """Name of a frame's file, counted from 1."""
    return f"frame_{number:05}.png"
