"""Files brought into the system's memory before they are used: mapped weights are then there in time."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ..files import TensorInfo
from .ring import Files

READ = 1 << 23
"""Bytes read at a time, into the same few each time."""


class ReadAhead:
    """A thread that reads tensors in the given order and keeps nothing: the system does.

    It ends by itself, also where a file cannot be read: whoever uses the weights will say so.
    """

    def __init__(self, infos: Sequence[TensorInfo]) -> None:
        """Those without a known place are left out."""
        self._infos = [info for info in infos if info.begin is not None]
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="wan read ahead", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until all is read."""
        self._thread.join()

    def close(self) -> None:
        """End the thread, whether it is done or not."""
        self._closed = True
        self.wait()

    def _work(self) -> None:
        files, scratch = Files(), memoryview(bytearray(READ))
        try:
            for info in self._infos:
                done = 0
                while done < info.nbytes and not self._closed:
                    done += files.read(info, done, scratch[: info.nbytes - done])
        except (OSError, ValueError):
            pass
        finally:
            files.close()
