"""Frames to files: a streaming mp4 writer, contact sheets and PNG.

The writer encodes in its own thread while frames are still being decoded, and its file appears
under its name only when it is whole: an interrupted or failing run leaves nothing behind.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from queue import Queue
from threading import Event
from types import TracebackType

import av
import torch
from av.error import FFmpegError
from av.video.reformatter import ColorRange, Colorspace
from einops import rearrange
from numpy import uint8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import Self

from .config import EncodingConfig

Pixels = NDArray[uint8]

_QUEUED_FRAMES = 8
_BT709 = 1
"""The code of BT.709 in all three H.264 colour fields: primaries, transfer, matrix."""
_MAX_FPS_DENOMINATOR = 1001
_ENCODING = EncodingConfig()


def to_uint8(video: Tensor) -> Tensor:
    """Decoded video (3, n, H, W) in [-1, 1] -> frames (n, H, W, 3) uint8 on the same device.

    The official rule: clamp, scale to 0..255, drop the fraction (no rounding).

    Raises:
        FloatingPointError: the video holds NaN or infinity, which would be written as black.
    """
    video = video.float()
    if not bool(torch.isfinite(video).all()):
        raise FloatingPointError(
            "the decoded frames hold NaN or infinity; decode in a wider dtype or check the latents"
        )
    scaled = (video.clamp(-1, 1) + 1) / 2 * 255
    frames: Tensor = rearrange(scaled.to(torch.uint8), "c n h w -> n h w c").contiguous()
    return frames


def contact_sheet(frames: Tensor, columns: int) -> Tensor:
    """All ``frames`` (n, H, W, 3) uint8 as one image (rows*H, columns*W, 3), in reading order.

    Cells after the last frame are black. Raises ValueError for no frames or no columns.
    """
    _check_frames(frames)
    if columns < 1 or not len(frames):
        raise ValueError(
            f"a contact sheet of {len(frames)} frames in {columns} columns is empty; use 1 or more"
        )
    cells = pad(frames, (0, 0, 0, 0, 0, 0, 0, -len(frames) % columns))
    sheet: Tensor = rearrange(cells, "(r c) h w d -> (r h) (c w) d", c=columns)
    return sheet


def save_png(path: str | Path, image: Tensor) -> None:
    """Write one image (H, W, 3) uint8; raises ValueError for other inputs, OSError if it cannot."""
    _check_frames(image[None] if image.ndim == 3 else image)
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.height, encoder.width = image.shape[:2]
    encoder.pix_fmt, encoder.time_base = "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(_pixels(image), format="rgb24")
    data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    with whole_file(Path(path)) as partial:
        partial.write_bytes(data)


def check_writable(path: str | Path) -> None:
    """Raise OSError, saying why, unless a file could be written at ``path`` now; leaves no trace."""
    _reserve(Path(path)).unlink()


class VideoWriter:
    """Streams uint8 frames into an mp4: ``with VideoWriter(path, ...) as w: w.write(frames)``.

    H.264, yuv420p, BT.709 in limited range, converted and tagged as such; the index lies before the
    frames, so that readers of a file's beginning find the metadata. Encoding runs in one worker
    thread behind a bounded queue. An existing file at ``path`` is replaced, at the end.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        width: int,
        height: int,
        fps: float | Fraction,
        metadata: Mapping[str, object] | None = None,
        encoding: EncodingConfig = _ENCODING,
    ) -> None:
        """Check everything that needs no file.

        Args:
            path: the mp4 to write; its folder must exist.
            width: pixels, even.
            height: pixels, even.
            fps: frames per second, above 0.
            metadata: container tags; strings are stored as they are, anything else as JSON (a
                ComfyUI host stores its graphs under ``prompt`` and ``workflow``).
            encoding: codec, rate factor and preset.

        Raises:
            ValueError: odd or empty sizes, a rate that is not positive, an unknown codec, or
                metadata that is not JSON.
        """
        for name, value in (("width", width), ("height", height)):
            if value < 2 or value % 2:
                low = max(2, value // 2 * 2)
                raise ValueError(f"{name}={value} is not even, H.264 needs it; use {low}")
        if not 0 < fps < math.inf:
            raise ValueError(f"fps={fps} is not a positive number; Wan 2.2 A14B makes 16")
        _check_codec(encoding.codec)
        self.path = Path(path)
        self.size = (height, width)
        self.fps = Fraction(fps).limit_denominator(_MAX_FPS_DENOMINATOR)
        self.metadata = {key: _tag(key, value) for key, value in (metadata or {}).items()}
        self.encoding = encoding
        self.frames = 0
        self._queue: Queue[Pixels | None] = Queue(maxsize=_QUEUED_FRAMES)
        self._broken = Event()

    def __enter__(self) -> Self:
        """Open the file; raises OSError if it cannot be made, ValueError if the codec cannot run."""
        self._partial = _reserve(self.path)
        with ExitStack() as undo:
            undo.callback(self._partial.unlink)
            self._container, self._stream = self._open()
            undo.pop_all()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="video")
        self._work: Future[None] = self._pool.submit(self._encode)
        return self

    def write(self, frames: Tensor) -> None:
        """Add ``frames`` (n, H, W, 3) uint8; blocks while the encoder is behind.

        Raises:
            ValueError: another shape or dtype than the file's.
            OSError: the encoder failed on an earlier frame (a full disk, for one).
        """
        _check_frames(frames)
        if tuple(frames.shape[1:3]) != self.size:
            height, width = self.size
            raise ValueError(
                f"frames of {frames.shape[2]}x{frames.shape[1]} do not fit a file of "
                f"{width}x{height}; write frames of one size"
            )
        # A copy: the caller may reuse its buffer while the frames wait in the queue.
        for frame in _pixels(frames).copy():
            if self._broken.is_set():
                self._join()
            self._queue.put(frame)
            self.frames += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the file and give it its name, or remove it if anything failed."""
        if kind is not None:
            self._broken.set()
        try:
            if kind is None:
                self._finish()
        finally:
            self._queue.put(None)
            self._pool.shutdown()
            with suppress(FileNotFoundError):
                self._partial.unlink()

    def _join(self) -> None:
        """End the worker and raise what it failed with, if it did."""
        self._queue.put(None)
        self._work.result()

    def _finish(self) -> None:
        self._join()
        if not self.frames:
            raise ValueError(f"no frame was written to {self.path}; write at least one")
        os.replace(self._partial, self.path)

    def _open(self) -> tuple[av.container.OutputContainer, av.VideoStream]:
        options = {"movflags": "use_metadata_tags+faststart"}
        container = av.open(str(self._partial), "w", format="mp4", options=options)
        try:
            container.metadata.update(self.metadata)
            stream = container.add_stream(self.encoding.codec, rate=self.fps)
            assert isinstance(stream, av.VideoStream)
            stream.options = {"crf": str(self.encoding.crf), "preset": self.encoding.preset}
            stream.height, stream.width = self.size
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = _BT709
            context.color_range = ColorRange.MPEG
            container.start_encoding()
        except (FFmpegError, ValueError) as error:
            with suppress(FFmpegError):
                container.close()
            raise ValueError(
                f"{self.encoding} cannot write an mp4 ({error}); use codec 'libx264', crf 0 to 51"
            ) from error
        return container, stream

    def _encode(self) -> None:
        """The worker: every queued frame, then the index. After a failure it only empties the queue."""
        ended, index = False, 0
        try:
            with self._container:
                while (pixels := self._queue.get()) is not None:
                    if not self._broken.is_set():
                        self._container.mux(self._stream.encode(_limited_range(pixels, index)))
                        index += 1
                ended = True
                if not self._broken.is_set():
                    self._container.mux(self._stream.encode(None))
        finally:
            if not ended:
                self._broken.set()
                while self._queue.get() is not None:
                    pass


def write_video(
    path: str | Path,
    frames: Tensor,
    fps: float | Fraction,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write ``frames`` (n, H, W, 3) uint8 as an mp4; see :class:`VideoWriter` for rules and errors."""
    _check_frames(frames)
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=fps, metadata=metadata) as writer:
        writer.write(frames)


def _limited_range(pixels: Pixels, index: int) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
        format="yuv420p",
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )
    frame.pts = index
    return frame


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"{frames.dtype} of shape {tuple(frames.shape)} is not a run of frames; "
            "use uint8 (n, height, width, 3), as `to_uint8` gives"
        )


def _pixels(frames: Tensor) -> Pixels:
    array: Pixels = frames.cpu().contiguous().numpy()
    return array


def _check_codec(name: str) -> None:
    try:
        codec = av.Codec(name, "w")
    except (FFmpegError, ValueError) as error:
        raise ValueError(f"no encoder is called {name!r}; use 'libx264'") from error
    if codec.type != "video":
        raise ValueError(f"{name!r} does not encode video; use 'libx264'")


def _tag(key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata {key!r} is not JSON ({error}); use text or JSON") from error


def _reserve(path: Path) -> Path:
    """Make an empty file beside ``path`` under a temporary name; raises OSError in plain words."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        partial.touch(exist_ok=False)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise type(error)(f"the folder {path.parent} does not exist; create it first") from error
    except PermissionError as error:
        raise PermissionError(
            f"no permission to write in {path.parent}; choose another folder"
        ) from error
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; choose another place") from error
    return partial


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file that becomes ``path`` if the block succeeds and vanishes if it does not."""
    partial = _reserve(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
