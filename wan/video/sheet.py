"""Contact sheets: a clip at one glance."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from .frames import DTYPES, check_frames

SHEET_FRAMES = 18
SHEET_COLUMNS = 6


def contact_sheet(frames: Tensor, columns: int) -> Tensor:
    """All ``frames`` (n, H, W, 3) uint8 as one image (rows*H, columns*W, 3), in reading order.

    Cells after the last frame are black. Raises ValueError for no frames or no columns.
    """
    check_frames(frames)
    if columns < 1 or not len(frames):
        raise ValueError(
            f"a contact sheet of {len(frames)} frames in {columns} columns is empty; use 1 or more"
        )
    cells = pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % columns))
    sheet: Tensor = rearrange(cells, "(r c) h w d -> (r h) (c w) d", c=columns)
    return sheet


class Sheet:
    """The contact sheet of a clip that comes in pieces: a few frames of it, evenly spread."""

    def __init__(self, total: int) -> None:
        """For a clip of ``total`` frames, at least 1."""
        count = min(SHEET_FRAMES, total)
        self._chosen = {round(i * (total - 1) / max(1, count - 1)) for i in range(count)}
        self._seen = 0
        self._kept: list[Tensor] = []

    def add(self, frames: Tensor) -> None:
        """The clip's next ``frames`` (n, H, W, 3), uint8 or uint16."""
        check_frames(frames, 16 if frames.dtype == DTYPES[16] else 8)
        for frame in frames:
            if self._seen in self._chosen:
                self._kept.append(_eight_bits(frame.cpu()))
            self._seen += 1

    def image(self) -> Tensor:
        """The sheet (rows*H, 6*W, 3) uint8, of one row for up to 6 frames; raises ValueError for no frame."""
        frames = torch.stack(self._kept) if self._kept else torch.empty(0, 1, 1, 3).byte()
        return contact_sheet(frames, min(SHEET_COLUMNS, max(1, len(frames))))


def _eight_bits(frame: Tensor) -> Tensor:
    if frame.dtype == torch.uint8:
        return frame.clone()
    return (frame.int() >> 8).to(torch.uint8)
