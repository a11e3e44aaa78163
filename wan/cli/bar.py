"""Progress on a terminal."""

from __future__ import annotations

import logging
import time
from typing import TextIO

BAR_WIDTH = 30


def progress_line(label: str, done: int, total: int) -> str:
    """``done`` of ``total`` as text."""
    filled = BAR_WIDTH * done // max(1, total)
    return f"{label:18} [{'#' * filled:{BAR_WIDTH}}] {done}/{total}"


class Bar:
    """Progress on one line of a terminal; elsewhere one line at the end of each phase."""

    def __init__(self, stream: TextIO) -> None:
        """Draw on ``stream``."""
        self._stream = stream
        self._label = ""
        self._started = 0.0

    def show(self, label: str, done: int, total: int) -> None:
        """``done`` of ``total`` in the phase ``label``; a new label starts a new line."""
        live = self._stream.isatty()
        if label != self._label:
            self.close()
            self._label, self._started = label, time.monotonic()
        line = f"{progress_line(label, done, total)}  {time.monotonic() - self._started:.0f} s"
        if live:
            self._stream.write(f"\r{line:79}")
        elif done == total:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line under way."""
        if self._label and self._stream.isatty():
            self._stream.write("\n")
        self._label = ""


class Messages(logging.StreamHandler[TextIO]):
    """Log messages on lines of their own, between those of a bar."""

    def __init__(self, stream: TextIO, bar: Bar) -> None:
        """Write to ``stream``, on which ``bar`` draws."""
        super().__init__(stream)
        self._bar = bar

    def emit(self, record: logging.LogRecord) -> None:
        """End the bar's line, then write."""
        self._bar.close()
        super().emit(record)
