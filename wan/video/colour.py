"""RGB frames to the planes that encoders take: BT.709, limited range."""

from __future__ import annotations

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from .frames import Pixels

PIXEL_FORMATS = tuple(
    f"yuv{chroma}p{depth}" for depth in ("", "10le", "12le") for chroma in (420, 422, 444)
)
"""What is written, by FFmpeg's names: chroma at half size both ways, half width, or whole."""
_RED, _GREEN, _BLUE = 0.2126, 0.7152, 0.0722
"""Luma of the primaries, BT.709."""


class ToPlanes:
    """Frames (H, W, 3) to pictures of one of :data:`PIXEL_FORMATS`.

    8 bits come from uint8 by FFmpeg, exactly rounded in luma. More come from uint16 in float32 here:
    FFmpeg's way from 16-bit RGB is off by up to 3.8 of 1023.
    """

    def __init__(self, layout: av.VideoFormat) -> None:
        """For pictures of ``layout``."""
        self._layout = layout
        self._reformatter = VideoReformatter()
        self.bits = 16 if layout.components[0].bits > 8 else 8

    def __call__(self, frame: Pixels) -> av.VideoFrame:
        """The picture of ``frame``, uint8 or uint16 by ``bits``."""
        if self.bits == 8:
            return self._reformatter.reformat(
                av.VideoFrame.from_ndarray(frame, format="rgb24"),
                format=self._layout.name,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
            )
        height, width = frame.shape[:2]
        picture = av.VideoFrame(width, height, self._layout.name)
        depth = self._layout.components[0].bits
        planes = to_planes(frame, depth, chroma_steps(self._layout))
        for plane, values in zip(picture.planes, planes, strict=True):
            rows = np.zeros((plane.height, plane.line_size // 2), np.uint16)
            rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        return picture


def to_planes(frame: Pixels, depth: int, steps: tuple[int, int]) -> list[NDArray[np.uint16]]:
    """Y, Cb and Cr of ``frame`` (H, W, 3) uint16, each of ``depth`` bits in limited range.

    Chroma is the mean over ``steps`` (rows, columns), (1, 1) for all of it. NumPy, because torch's
    threads, called from the writer's, would fight with those that decode.
    """
    full, scale = np.float32(65535), np.float32(2 ** (depth - 8))
    red, green, blue = (np.ascontiguousarray(frame[..., i], np.float32) / full for i in range(3))
    luma = _RED * red + _GREEN * green + _BLUE * blue
    levels = [(16 + 219 * luma) * scale]
    for primary, weight in ((blue, _BLUE), (red, _RED)):
        chroma = _mean((primary - luma) / (2 - 2 * weight), *steps)
        levels.append((128 + 224 * chroma) * scale)
    return [level.round().astype(np.uint16) for level in levels]


def _mean(values: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    parts = [values[y::rows, x::columns] for y in range(rows) for x in range(columns)]
    total: NDArray[np.float32] = sum(parts[1:], start=parts[0])
    return total / np.float32(len(parts))


def chroma_steps(layout: av.VideoFormat) -> tuple[int, int]:
    """Pixels per chroma sample: (rows, columns)."""
    return 2 // layout.chroma_height(2), 2 // layout.chroma_width(2)
