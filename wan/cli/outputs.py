"""Files that commands write: clips with their progress, contact sheets, names that must be free."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from ..files import shown
from ..video import (
    FrameWriter,
    Sheet,
    check_folder_writable,
    check_writable,
    save_png,
)
from .bar import Bar

STILL_ENDING = ".png"


def check_still(path: Path, frames: int) -> bool:
    """Whether ``path`` names one image; raises ValueError if the clip has more frames than one."""
    if path.suffix.lower() != STILL_ENDING:
        return False
    if frames != 1:
        raise ValueError(
            f"the clip has {frames} frames, {shown(path.name)} is one image; end it in .mp4"
        )
    return True


def check_outputs(files: Sequence[Path | None], folder: Path | None = None) -> list[Path]:
    """The outputs that were asked for, a folder of frames first, once all can be written.

    Raises:
        ValueError: two of them are one.
        OSError: one cannot be written.
    """
    outputs = [path for path in (folder, *files) if path]
    if len({path.resolve() for path in outputs}) < len(outputs):
        raise ValueError("two outputs have the same name; give each its own")
    for path in outputs:
        if path is folder:
            check_folder_writable(path)
        else:
            check_writable(path)
    return outputs


def write_clip(
    chunks: Iterable[Tensor], writer: FrameWriter, *, total: int, bar: Bar, sheet: Path | None
) -> None:
    """Decoded ``chunks`` of a clip of ``total`` frames into ``writer`` and, if named, a contact sheet."""
    cells = Sheet(total)
    with writer:
        for frames in chunks:
            bar.show("decode", writer.frames + len(frames), total)
            if sheet:
                cells.add(frames)
            writer.write(frames)
    bar.close()
    if sheet:
        save_png(sheet, cells.image())
