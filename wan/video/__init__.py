"""Frames to files: streaming mp4 and PNG sequence writers, contact sheets and PNG."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from .audio import Audio, read_audio
from .clip import Clip
from .files import check_folder_writable, check_writable, whole_file
from .formats import FORMATS, MP4_FORMATS, SEQUENCE_FORMATS, STILL_FORMATS, open_writer
from .frames import check_frames, check_latents, to_frames, to_uint8, to_uint16
from .images import PNG_SIGNATURE, read_png, read_png_tags, save_png
from .mp4 import BEST_CRF, WORST_CRF, VideoWriter
from .sequence import SequenceWriter, frame_name
from .sheet import SHEET_FRAMES, Sheet, contact_sheet
from .still import StillWriter
from .writer import FrameWriter

__all__ = [
    "BEST_CRF",
    "FORMATS",
    "MP4_FORMATS",
    "PNG_SIGNATURE",
    "SEQUENCE_FORMATS",
    "SHEET_FRAMES",
    "STILL_FORMATS",
    "WORST_CRF",
    "Audio",
    "Clip",
    "FrameWriter",
    "SequenceWriter",
    "Sheet",
    "StillWriter",
    "VideoWriter",
    "check_folder_writable",
    "check_latents",
    "check_writable",
    "contact_sheet",
    "frame_name",
    "open_writer",
    "read_audio",
    "read_png",
    "read_png_tags",
    "save_png",
    "to_frames",
    "to_uint8",
    "to_uint16",
    "whole_file",
    "write_video",
]


def write_video(
    path: str | Path,
    frames: Tensor,
    fps: float | Fraction,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write ``frames`` (n, H, W, 3) uint8 as an mp4; see :class:`VideoWriter` for rules and errors."""
    check_frames(frames)
    height, width = frames.shape[1:3]
    clip = Clip(width=width, height=height, fps=fps, metadata=metadata or {})
    with VideoWriter(path, clip) as writer:
        writer.write(frames)
