"""A few buffers that a thread fills from disk with the next weights while the last ones are used."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch

from ..files import TensorInfo, shown

SLOTS = 2
"""Buffers: one is used while the other is filled."""
READ = 1 << 25
"""Bytes asked for at a time; between two reads the thread looks whether it may end."""
PATIENCE = 1.0
"""Seconds after which a wait wakes up by itself: not every system lets Ctrl-C end one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """One tensor on its way from a file to a place in a buffer.

    Attributes:
        name: of the parameter.
        info: where it lies; ``begin`` is known.
        at: first byte in the buffer.
    """

    name: str
    info: TensorInfo
    at: int

    @property
    def end(self) -> int:
        """The byte of the buffer after the last one."""
        return self.at + self.info.nbytes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Load:
    """What fills a buffer at a time, in the order of the file."""

    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of buffer it needs."""
        return max((piece.end for piece in self.pieces), default=0)


class Files:
    """Weight files under reading, each opened once."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[FileIO, int]] = {}

    def read(self, info: TensorInfo, done: int, into: memoryview) -> int:
        """Bytes ``done`` and after of a tensor into all or the front of ``into``; returns how many.

        Raises:
            OSError: the file cannot be read.
            ValueError: it ends before the tensor does.
        """
        assert info.begin is not None
        try:
            if info.file not in self._open:
                self._open[info.file] = _opened(info.file)
            handle, _ = self._open[info.file]
            handle.seek(info.begin + done)
            count = handle.readinto(into)
        except OSError as error:
            raise OSError(
                f"{shown(info.file)} cannot be read any more ({error.strerror}); "
                "see to the disk and start again"
            ) from error
        if not count:
            raise _shortened(info.file)
        return count

    def check(self) -> None:
        """Raise ValueError if one became shorter: to touch its mapped weights would end the process."""
        for path, (handle, size) in list(self._open.items()):
            if _size(handle) < size:
                raise _shortened(path)

    def close(self) -> None:
        """Close them all."""
        while self._open:
            self._open.popitem()[1][0].close()


def _opened(path: Path) -> tuple[FileIO, int]:
    """A file and its size; the system is told to read well ahead, where it listens."""
    handle = FileIO(path)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return handle, _size(handle)


def _size(handle: FileIO) -> int:
    return os.fstat(handle.fileno()).st_size


def _shortened(path: Path) -> ValueError:
    return ValueError(
        f"{shown(path)} became shorter while it was in use; put the whole file back and start again"
    )


class Slot:
    """One buffer in main memory, and what it holds."""

    def __init__(self, nbytes: int) -> None:
        # torch aligns what it allocates to 64 bytes.
        self.buffer = torch.empty(nbytes, dtype=torch.uint8)
        self.bytes = self.buffer.numpy().data
        self.load: Load | None = None
        self.ready = False

    def clear(self) -> None:
        """Wait until ``bytes`` may be overwritten."""

    def send(self, nbytes: int) -> None:
        """``bytes`` are filled: bring them to ``buffer``."""

    def arrive(self) -> None:
        """Let what the caller computes from now on wait for ``buffer``."""

    def leave(self) -> None:
        """What the caller computed until now is the last that needs ``buffer``."""


class CardSlot(Slot):
    """A buffer on a CUDA device behind a pinned one, which it is copied from beside the computation."""

    def __init__(self, nbytes: int, device: torch.device, stream: torch.cuda.Stream) -> None:
        super().__init__(0)
        self._host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        self.bytes = self._host.numpy().data
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self._stream = stream
        self._sent, self._left = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Wait for the last copy out of the pinned buffer."""
        self._sent.synchronize()

    def send(self, nbytes: int) -> None:
        """Queue the copy behind the last use of ``buffer``."""
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._left)
            self.buffer[:nbytes].copy_(self._host[:nbytes], non_blocking=True)
            self._sent.record(self._stream)

    def arrive(self) -> None:
        """Let the current stream wait for the copy."""
        torch.cuda.current_stream(self.buffer.device).wait_event(self._sent)

    def leave(self) -> None:
        """Mark the place in the current stream."""
        self._left.record(torch.cuda.current_stream(self.buffer.device))


class Ring:
    """Buffers of one size that a thread keeps filled with what is wanted next.

    Whoever uses one takes it by what it holds and says what comes after; what is held and wanted
    again is not read again. Close it, or use it in a ``with`` block: that ends the thread.

    Attributes:
        read: bytes read so far.
        waited: seconds that takers had to wait.
    """

    def __init__(self, nbytes: int, device: torch.device, slots: int = SLOTS) -> None:
        """``slots`` buffers of ``nbytes`` on ``device``, the CPU or a CUDA device."""
        self.read, self.waited = 0, 0.0
        with torch.inference_mode(False):  # the thread writes where the taker's mode is not known
            self._slots = _make_slots(nbytes, device, slots)
        self._wanted: tuple[Load, ...] = ()
        self._error: Exception | None = None
        self._closed = False
        self._files = Files()
        self._turn = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="wan weights", daemon=True)
        self._thread.start()

    def take(self, load: Load, ahead: Sequence[Load] = ()) -> torch.Tensor:
        """The buffer with ``load`` in it, ``(bytes,)`` uint8; the one taken before goes back.

        Args:
            load: wanted now; waits until it is there.
            ahead: wanted after it, in order; as many are read as there are buffers.

        Raises:
            OSError, ValueError: a file could not be read; no later call will work.
        """
        wanted = (load, *ahead)[: len(self._slots)]
        start = time.perf_counter()
        with self._turn:
            for old in self._slots:
                if old.ready and old.load not in wanted:
                    old.leave()
            self._wanted = wanted
            self._turn.notify_all()
            while not self._has(load):
                if self._error is not None:
                    raise self._error
                if self._closed or not self._thread.is_alive():
                    raise RuntimeError("the ring of weights is closed")
                self._turn.wait(PATIENCE)
            slot = next(slot for slot in self._slots if slot.load is load)
        self.waited += time.perf_counter() - start
        slot.arrive()
        return slot.buffer

    def check(self) -> None:
        """Raise ValueError if a file that was read from became shorter since."""
        self._files.check()

    def close(self) -> None:
        """End the thread and let go of files and buffers."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()
        self._thread.join()
        self._files.close()
        self._slots.clear()

    def __enter__(self) -> Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _has(self, load: Load) -> bool:
        return any(slot.load is load and slot.ready for slot in self._slots)

    def _work(self) -> None:
        """Fill buffers until the ring is closed; an error is kept for whoever takes next."""
        try:
            while (slot := self._next()) is not None:
                whole = self._fill(slot)
                with self._turn:
                    slot.ready = whole
                    if not whole:
                        slot.load = None
                    self._turn.notify_all()
        except (OSError, ValueError, RuntimeError, MemoryError) as error:
            with self._turn:
                self._error = error
                self._turn.notify_all()

    def _next(self) -> Slot | None:
        """A free buffer that was given the next wanted load; None when the ring is closed."""
        with self._turn:
            while not self._closed:
                held = [slot.load for slot in self._slots]
                load = next((one for one in self._wanted if one not in held), None)
                free = next((slot for slot in self._slots if slot.load not in self._wanted), None)
                if load is not None and free is not None:
                    free.load, free.ready = load, False
                    return free
                self._turn.wait(PATIENCE)
        return None

    def _fill(self, slot: Slot) -> bool:
        """Read a load into its buffer; False if it was given up because nobody wants it any more."""
        load = slot.load
        assert load is not None
        slot.clear()
        for piece in load.pieces:
            at = piece.at
            while at < piece.end:
                if self._closed or load not in self._wanted:
                    return False
                into = slot.bytes[at : min(piece.end, at + READ)]
                count = self._files.read(piece.info, at - piece.at, into)
                at += count
                self.read += count
        slot.send(load.nbytes)
        return True


def _make_slots(nbytes: int, device: torch.device, slots: int) -> list[Slot]:
    if device.type == "cpu":
        return [Slot(nbytes) for _ in range(slots)]
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return [CardSlot(nbytes, device, stream) for _ in range(slots)]
