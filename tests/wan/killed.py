"""Runs that are killed, in processes of their own: ``python killed.py FAMILY FOLDER``.

Each case is a chain of processes in one folder. All but the last kill themselves with SIGKILL, at the
callback of a step or in the middle of writing a file; the last one runs to the end. One JSON line per
case: what each process started from, and whether the last one's latents are those of a run that nobody
killed. Processes are forked before anything was computed, so that they start in milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from wan.pipeline import Keep, Pipeline, Request  # noqa: E402
from wan.sampling import Progress  # noqa: E402
from wan.solvers import SOLVERS  # noqa: E402
from wan.state import Store  # noqa: E402
from wan.state import files as state_files  # noqa: E402
from wan.switch import Switch  # noqa: E402

STEPS = 4
PROMPT = "a red circle moves left"


@dataclass(frozen=True, kw_only=True)
class Death:
    """When a process ends: after ``step``, or in the ``number``-th file it writes, at ``moment``."""

    step: int = 0
    number: int = 0
    moment: str = ""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_while_writing(death: Death) -> Callable[[Progress], None]:
    """Let the writer of files kill the process at one moment of one of them.

    Returns a callback that lets each step wait for its file, so that it is known which file is which.
    """
    begun, named, steps = 0, 0, 0
    write, rename = state_files.write_safetensors, os.replace

    def due(moment: str) -> bool:
        return begun == death.number and moment == death.moment

    def writing(path: Path, entries: object, metadata: object) -> None:
        nonlocal begun
        begun += 1
        write(path, entries, metadata)
        if due("half written"):
            os.truncate(path, path.stat().st_size // 2)
            die()
        if due("not on disk"):
            die()

    def renaming(source: Path, target: Path) -> None:
        nonlocal named
        if due("before its name"):
            die()
        rename(source, target)
        if due("after its name"):
            die()
        named += 1

    def wait(progress: Progress) -> None:
        nonlocal steps
        steps += 1
        while named < steps:
            time.sleep(0.001)

    state_files.write_safetensors = writing
    os.replace = renaming
    return wait


def run(family: Path, folder: Path, solver: str, death: Death | None) -> None:
    """One process's part of a run; its latents go into ``folder`` if it lives."""
    torch.set_num_threads(1)
    parts = {part: family / f"{part}.safetensors" for part in ("high", "low", "vae", "text")}
    pipeline = Pipeline.load(**parts, device="cpu")
    sampling = replace(pipeline.defaults, steps=STEPS, solver=solver)
    request = Request(prompt=PROMPT, sampling=sampling, seed=5, switch=Switch("step", 2))

    def callback(progress: Progress) -> None:
        if death is not None and death.step == progress.step:
            die()

    if death is not None and death.number:
        callback = die_while_writing(death)

    latents = pipeline.sample(request, callback, keep=Keep(store=Store(folder=folder / "runs")))
    torch.save(latents, folder / "latents.pt")


def forked(work: Callable[[], None]) -> int:
    """Do ``work`` in a process of its own; returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            logging.exception("the process failed")
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a process failed")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def cases() -> dict[str, tuple[str, list[Death]]]:
    """Name -> solver and the deaths of its processes in turn."""
    found: dict[str, tuple[str, list[Death]]] = {}
    for solver in SOLVERS:
        for step in range(1, STEPS + 1):
            found[f"{solver}, step {step}"] = solver, [Death(step=step)]
        found[f"{solver}, every step"] = solver, [Death(step=s) for s in range(1, STEPS + 1)]
    for moment in ("half written", "not on disk", "before its name", "after its name"):
        # Four steps and the latents: five files.
        for number in range(1, STEPS + 2):
            found[f"file {number} {moment}"] = "unipc", [Death(number=number, moment=moment)]
        found[f"every file {moment}"] = "unipc", [Death(number=1, moment=moment)] * 3
    return found


def main(family: Path, folder: Path) -> None:
    """All cases, one JSON line each."""
    wanted = {}
    for solver in SOLVERS:
        place = folder / f"whole {solver}"
        place.mkdir()
        assert forked(lambda place=place, solver=solver: run(family, place, solver, None)) == 0
        wanted[solver] = torch.load(place / "latents.pt")
    for name, (solver, deaths) in cases().items():
        place = folder / name
        place.mkdir()
        ends = []
        for death in [*deaths, None]:
            log = place / f"log {len(ends)}"

            def work(place: Path = place, death: Death | None = death, log: Path = log) -> None:
                logging.basicConfig(filename=log, level=logging.WARNING, format="%(message)s")
                run(family, place, solver, death)  # noqa: B023 - it runs before the next one

            ends.append(forked(work))
        latents = torch.load(place / "latents.pt")
        told = [(place / f"log {i}").read_text().splitlines() for i in range(len(ends))]
        left = sorted(path.name.partition(".")[2] for path in (place / "runs").iterdir())
        equal = torch.equal(latents, wanted[solver])
        line = {"case": name, "ends": ends, "equal": equal, "told": told, "left": left}
        sys.stdout.write(f"{json.dumps(line)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
