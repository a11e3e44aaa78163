"""One frame as one PNG file: text-to-image."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from .clip import Clip
from .files import reserve
from .sequence import SequenceWriter


class StillWriter(SequenceWriter):
    """Writes a clip of one frame as ``path``, see :class:`.SequenceWriter` for what is in it."""

    def __init__(self, path: str | Path, clip: Clip, *, bits: int = 8) -> None:
        """The same checks; ``path`` is a file, and there is no finished part of one frame to keep."""
        super().__init__(path, clip, bits=bits, keep_partial=False)

    def write(self, frames: Tensor) -> None:
        """Take the frame (1, H, W, 3); raises ValueError for more than one."""
        if self.frames + len(frames) > 1:
            raise ValueError(f"{self.path} is one image; write a clip as an mp4 or a PNG sequence")
        super().write(frames)

    def _reserve(self) -> Path:
        return reserve(self.path)

    def _target(self) -> Path:
        return self._hidden

    def _place(self, hidden: Path, path: Path) -> None:
        os.replace(hidden, path)
