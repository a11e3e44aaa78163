"""What benchmarks share: ways that take turns, what numbers hang on, and the line they end in."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

Way = Callable[[], object]


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


def versions(comfyui: Path | None = None) -> dict[str, str]:
    """Versions of PyTorch and of what is compared with, as far as it is at hand."""
    told = {name: version(name) for name in ("torch", "diffusers") if find_spec(name)}
    if comfyui is not None:
        told["comfyui"] = comfy_version(comfyui)
    return told


def comfy_version(folder: Path) -> str:
    """Version of a ComfyUI checkout."""
    return (folder / "comfyui_version.py").read_text().split('"')[1]


def take_turns(
    ways: Mapping[str, Way], rounds: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, list[float]]:
    """Seconds of each way in each round; a first round, which makes all ready, is not counted.

    All take turns, so that other work on the machine meets all alike. The clock of the one thread
    that works leaves out waiting for a processor.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def over(seconds: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Of each way, the median over rounds of its time over that of ``base``."""
    return {
        name: round(median(a / b for a, b in zip(found, seconds[base], strict=True)), 3)
        for name, found in seconds.items()
    }


def report(line: Mapping[str, object], out: Path | None) -> None:
    """Print one JSON line and add it to a file."""
    text = json.dumps(line)
    print(text, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(text + "\n")
