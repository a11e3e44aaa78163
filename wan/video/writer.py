"""Frames to a file while they are still being decoded."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from queue import Queue
from threading import Event
from types import TracebackType

from av.error import FFmpegError
from torch import Tensor
from typing_extensions import Self

from .clip import Clip
from .files import cannot_write, partial_name, remove
from .frames import Pixels, check_frames, pixels

log = logging.getLogger(__name__)

_QUEUED_FRAMES = 8


class FrameWriter(ABC):
    """Streams frames into a file or folder: ``with VideoWriter(path, clip) as w: w.write(frames)``.

    One worker thread encodes behind a bounded queue. The file appears under its name when the block
    ends, whole. If the block fails nothing is left, or, with ``keep_partial``, the finished part is
    closed properly under the name ``<name>_partial`` and the log says so. A process that is killed
    leaves one hidden ``.part`` file or folder, which can be deleted.

    Attributes:
        path: where it will be.
        clip: what it will be.
        bits: 8 or 16: which frames :meth:`write` takes.
        frames: how many were written so far.
    """

    bits: int

    def __init__(self, path: str | Path, clip: Clip, *, keep_partial: bool) -> None:
        """Check everything that needs no file."""
        self.path = Path(path)
        self.clip = clip
        self.frames = 0
        self._keep_partial = keep_partial
        self._queue: Queue[Pixels | None] = Queue(maxsize=_QUEUED_FRAMES)
        self._dropped = Event()

    def __enter__(self) -> Self:
        """Open the file; raises OSError if it cannot be made, ValueError if the codec cannot run."""
        self._hidden = self._reserve()
        with ExitStack() as undo:
            undo.callback(remove, self._hidden)
            self._begin(self._hidden)
            undo.pop_all()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="video")
        self._work: Future[None] = self._pool.submit(self._run)
        return self

    def write(self, frames: Tensor) -> None:
        """Add ``frames`` (n, H, W, 3), uint8 or uint16 by :attr:`bits`; blocks while the encoder is behind.

        Raises:
            ValueError: another shape or dtype than the file's.
            OSError: an earlier frame could not be written (a full disk, for one).
        """
        check_frames(frames, self.bits)
        if tuple(frames.shape[1:3]) != (self.clip.height, self.clip.width):
            raise ValueError(
                f"frames of {frames.shape[2]}x{frames.shape[1]} do not fit a file of "
                f"{self.clip.width}x{self.clip.height}; write frames of one size"
            )
        # A copy: the caller may reuse its buffer while the frames wait in the queue.
        for frame in pixels(frames).copy():
            if self._dropped.is_set():
                self._join()
            self._queue.put(frame)
            self.frames += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the file and give it its name; after an error keep the finished part or nothing."""
        try:
            if kind is None:
                self._join()
                if not self.frames:
                    raise ValueError(f"no frame was written to {self.path}; write at least one")
                self._place(self._hidden, self.path)
            elif self._keep_partial and self.frames and not self._dropped.is_set():
                self._save_partial()
        finally:
            self._dropped.set()
            self._queue.put(None)
            self._pool.shutdown()
            remove(self._hidden)

    def _save_partial(self) -> None:
        """Close and name what was written; a failure here must not hide the one that led here."""
        with suppress(OSError, ValueError):
            self._join()
            named = partial_name(self.path)
            self._place(self._hidden, named)
            log.warning("kept the first %d frames as %s", self.frames, named)

    def _join(self) -> None:
        """End the worker and raise what it failed with, if it did."""
        self._queue.put(None)
        self._work.result()

    def _run(self) -> None:
        """The worker: every queued frame, then the end. After a failure it only empties the queue."""
        ended = False
        try:
            while (frame := self._queue.get()) is not None:
                if not self._dropped.is_set():
                    self._add(frame)
            ended = True
            if not self._dropped.is_set():
                self._finish()
        except (OSError, FFmpegError) as error:
            raise cannot_write(self.path, error) from error
        finally:
            self._close()
            self._dropped.set()
            while not ended:
                ended = self._queue.get() is None

    def _place(self, hidden: Path, path: Path) -> None:
        os.replace(hidden, path)

    @abstractmethod
    def _reserve(self) -> Path:
        """Make the hidden file or folder; OSError in plain words if it cannot be made."""

    @abstractmethod
    def _begin(self, hidden: Path) -> None:
        """Open the encoder; ValueError in plain words if it cannot run."""

    @abstractmethod
    def _add(self, frame: Pixels) -> None:
        """Encode the next frame (H, W, 3); in the worker, as all that follows."""

    @abstractmethod
    def _finish(self) -> None:
        """Write what the encoder still holds, and the end of the file."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of everything, finished or not; raises nothing."""
