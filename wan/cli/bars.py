"""Progress of several things at once: a line for each on a terminal, one line per result elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TextIO

from .bar import progress_line


class Bars:
    """Lines at the bottom of a terminal, one per label; used by several threads."""

    def __init__(self, stream: TextIO, labels: Sequence[str]) -> None:
        """Draw on ``stream``."""
        self._stream = stream
        self._live = stream.isatty()
        self._lines = dict.fromkeys(labels, "")
        self._lock = threading.Lock()
        self._drawn = 0

    def show(self, label: str, done: int, total: int, note: str) -> None:
        """``done`` of ``total`` on the line of ``label``, with ``note`` after it."""
        with self._lock:
            self._lines[label] = f"{progress_line(label, done, total)}  {note}"
            self._draw()

    def say(self, text: str, stream: TextIO | None = None) -> None:
        """A line that stays, above the others; on another ``stream``, perhaps."""
        with self._lock:
            self._erase()
            self._stream.flush()
            print(text, file=stream or self._stream, flush=True)
            self._draw()

    def close(self) -> None:
        """Take the lines away."""
        with self._lock:
            self._erase()
            self._stream.flush()
            self._live = False

    def _erase(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}F\x1b[J")
        self._drawn = 0

    def _draw(self) -> None:
        if not self._live:
            return
        self._erase()
        lines = [line for line in self._lines.values() if line]
        self._stream.write("".join(f"{line[:79]}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)
