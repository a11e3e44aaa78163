"""Peaks of this process's memory as Linux counts it."""

from __future__ import annotations

import threading
from pathlib import Path

from .lines import hardware as hardware

MB = 1e6
_FORGET_PEAK = "5"


class PeakRSS:
    """Peak resident memory while the block runs, above what was resident when it was made.

    Exact, nothing is sampled. Make it after the imports and after weights that files back were
    touched, and enter it before the first product: what kernels and the allocator keep belongs to
    the peak.
    """

    def __init__(self) -> None:
        """Start from what is resident now."""
        self._base, self._top = kept("status", "VmRSS"), 0

    def __enter__(self) -> PeakRSS:
        """Let the system forget earlier peaks."""
        Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)
        return self

    def __exit__(self, *_: object) -> None:
        """Read the peak."""
        self._top = kept("status", "VmHWM")

    @property
    def mb(self) -> float:
        """The peak in MB of 1e6 bytes."""
        return round((self._top - self._base) * 1024 / MB, 1)


class Peak:
    """Peak anonymous memory of this process while the block runs, sampled every few milliseconds."""

    def __enter__(self) -> Peak:
        """Start from what is held now."""
        self._base = self._peak = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sampling."""
        self._done.set()
        self._thread.join()
        self._peak = max(self._peak, anonymous())

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._peak = max(self._peak, anonymous())

    @property
    def bytes(self) -> int:
        """Peak above the start."""
        return self._peak - self._base


def anonymous() -> int:
    """Bytes of memory of this process that no file backs."""
    return kept("status", "RssAnon") * 1024


def kept(file: str, field: str, process: int | str = "self") -> int:
    """A number that Linux keeps of a process; of memory in units of 1024 bytes."""
    for line in Path("/proc", str(process), file).read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{process}/{file} has no {field}; this benchmark needs Linux")
