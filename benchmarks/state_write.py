"""What keeping a run costs its steps at 720p.

    python benchmarks/state_write.py [--steps 12] [--pause 2] [--step-seconds 10] [--device cpu]
                                     [--folder FOLDER] [--out results.jsonl]

UniPC on latents of 81 frames at 1280x720, (1, 16, 21, 90, 160) float32, with everything a state holds: the
latents, two clean predictions and the latest corrected sample. The network is a pause, which leaves the
CPU as free as a GPU at work does. The same run is timed in turn without and with keeping. One JSON line:

- ``blocked_ms``: time a step spends in the call that keeps it, the mean of all steps; the median too;
- ``added_ms``: how much longer a step takes with keeping, measured on whole steps without the solver's
  scatter: the difference of medians;
- ``end_ms``: wait at the end of a run until the last state and the final latents are on the disk;
- ``check_ms``: the sentinel's measurement of one step on this device;
- ``state_mb``, ``writer_mb_s``: size of a state, and how fast the thread checks and writes it, disk included;
- ``share``: the mean of ``blocked_ms``, with ``end_ms`` shared among the steps, of a step of
  ``step_seconds``: one evaluation of an A14B expert on an H100 (13.0 s in the official code, 10 s with the
  best kernels), so the fastest exact step there is; guidance doubles it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks.lines import hardware, report
from wan.sampling import Progress, sample
from wan.schedule import make_schedule
from wan.sentinel import check
from wan.solvers import SOLVERS
from wan.state import Keeper, RunKeys, Store, run_key, write_state
from wan.state.files import RunState

SHAPE = (1, 16, 21, 90, 160)
LIMIT = 0.02


class Times:
    """Seconds of each step, and of each call that keeps one."""

    def __init__(self, keeper: Keeper | None) -> None:
        """Time a run; with a ``keeper``, keep it too."""
        self.keeper, self.steps, self.calls = keeper, [], []
        self.latest = time.perf_counter()
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        """After a step."""
        if self.keeper is not None:
            began = time.perf_counter()
            self.keeper.keep(progress.step, progress.x, progress.state, progress.verdict)
            self.calls.append(time.perf_counter() - began)
        now = time.perf_counter()
        self.steps.append(now - self.latest)
        self.latest, self.last = now, progress


def run(noise: Tensor, steps: int, pause: float, folder: Path | None) -> tuple[Times, float]:
    """One run, kept in ``folder`` if there is one; its times, and the wait at its end."""
    schedule = make_schedule("unipc", steps=steps, shift=12.0)

    def velocity(x: Tensor, sigma: float) -> Tensor:
        time.sleep(pause)
        return x * 0.5

    if folder is None:
        times = Times(None)
        sample(velocity, noise, schedule, SOLVERS["unipc"], callback=times)
        return times, 0.0
    key = run_key({"noise": noise})
    with Keeper(Store(folder=folder), RunKeys(run=key), steps) as keeper:
        times = Times(keeper)
        latents = sample(velocity, noise, schedule, SOLVERS["unipc"], callback=times)
        began = time.perf_counter()
        assert keeper.finish(latents) is not None
    return times, time.perf_counter() - began


def writing(folder: Path, progress: Progress) -> tuple[float, float]:
    """Megabytes of a state, and megabytes a second: the median of five."""
    state = RunState(key="key", run="key", step=1, total=1, x=progress.x, solver=progress.state)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        write_state(folder / "state", state)
        seconds.append(time.perf_counter() - began)
    size = (folder / "state").stat().st_size / 1e6
    return size, size / statistics.median(seconds)


def checking(progress: Progress) -> float:
    """Seconds of the sentinel's measurement of one step."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        assert check(progress.denoised, 0.5, x=progress.x).good
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main() -> int:
    """Print one JSON line; returns 1 if keeping costs more than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--pause", type=float, default=2.0)
    parser.add_argument("--step-seconds", type=float, default=10.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where to write; default: a temporary folder")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    noise = noise.to(given.device)
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        folder = Path(place)
        plain, _ = run(noise, given.steps, given.pause, None)
        kept, end = run(noise, given.steps, given.pause, folder / "runs")
        assert kept.last is not None
        size, speed = writing(folder, kept.last)
        share = (statistics.mean(kept.calls) + end / given.steps) / given.step_seconds
        added = statistics.median(kept.steps) - statistics.median(plain.steps)
        line = {
            "benchmark": "state_write",
            "shape": list(SHAPE),
            "steps": given.steps,
            "pause_s": given.pause,
            "blocked_ms": round(1e3 * statistics.mean(kept.calls), 3),
            "blocked_median_ms": round(1e3 * statistics.median(kept.calls), 3),
            "added_ms": round(1e3 * added, 1),
            "end_ms": round(1e3 * end, 1),
            "check_ms": round(1e3 * checking(kept.last), 1),
            "state_mb": round(size, 1),
            "writer_mb_s": round(speed, 1),
            "step_s": given.step_seconds,
            "share": round(share, 6),
            "limit": LIMIT,
            "torch": torch.__version__,
            "device": given.device,
            **hardware(),
        }
    report(line, given.out)
    return int(share > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
