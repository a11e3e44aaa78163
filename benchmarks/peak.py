"""Peak of this process's resident memory as Linux counts it: exact, nothing is sampled."""

from __future__ import annotations

import os
import platform
from pathlib import Path

MB = 1e6
_FORGET_PEAK = "5"


class PeakRSS:
    """Peak resident memory while the block runs, above what was resident when it was made.

    Make it after the imports and after weights that files back were touched, and enter it before
    the first product: what kernels and the allocator keep belongs to the peak.
    """

    def __init__(self) -> None:
        """Start from what is resident now."""
        self._base, self._top = _status("VmRSS"), 0

    def __enter__(self) -> PeakRSS:
        """Let the system forget earlier peaks."""
        Path("/proc/self/clear_refs").write_text(_FORGET_PEAK)
        return self

    def __exit__(self, *_: object) -> None:
        """Read the peak."""
        self._top = _status("VmHWM")

    @property
    def mb(self) -> float:
        """The peak in MB of 1e6 bytes."""
        return round((self._top - self._base) / MB, 1)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux")


def hardware() -> dict[str, object]:
    """What the numbers hang on: processor and cores that this process may use."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "machine": platform.machine(),
        "processor": models[0] if models else "",
        "cores": len(os.sched_getaffinity(0)),
    }
