"""Files that notice being opened, by whichever process and through whichever library."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

_OPENED = 0x20
_EVENT = struct.Struct("iIII")


class Canaries:
    """Watches files: ``with Canaries([path]) as birds: ...; assert not birds.opened()``."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __enter__(self) -> Canaries:
        if not sys.platform.startswith("linux"):
            pytest.skip("only Linux tells who opens a file")
        libc = ctypes.CDLL(None, use_errno=True)
        self._queue = libc.inotify_init1(os.O_NONBLOCK)
        assert self._queue >= 0, os.strerror(ctypes.get_errno())
        self._watched = {
            libc.inotify_add_watch(self._queue, os.fsencode(path), _OPENED): path
            for path in self._paths
        }
        assert -1 not in self._watched, os.strerror(ctypes.get_errno())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        os.close(self._queue)

    def opened(self) -> list[Path]:
        """Which files were opened since the last question, once for each time."""
        try:
            data = os.read(self._queue, 1 << 16)
        except BlockingIOError:
            return []
        found, place = [], 0
        while place < len(data):
            watch, _, _, length = _EVENT.unpack_from(data, place)
            found.append(self._watched[watch])
            place += _EVENT.size + length
        return found
