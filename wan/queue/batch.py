"""All of it: read a workflow for a server, share its prompts out, wait for the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import shown
from ..workflow import parse_workflow, read_canvas
from .canvas import changed_canvas
from .catalog import Catalog
from .jobs import Job, Wishes, make_jobs
from .ledger import Ledger
from .pool import Pool
from .server import Server, Unavailable
from .worker import Pace, Watcher, Worker

FAREWELL = 15.0
"""Seconds for servers to hear of an interrupt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The prompts of a command; ``canvas`` gives the UI file of each, if there is one."""

    jobs: Sequence[Job]
    canvas: Callable[[Job], Mapping[str, Any] | None]


def read_batch(path: Path, wishes: Wishes, catalog: Catalog) -> Batch:
    """What to queue of a workflow, by the nodes a server has.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no workflow, or not one for these nodes and wishes; one sentence says why.
    """
    data, orders = read_canvas(path), catalog.orders()
    try:
        jobs = make_jobs(parse_workflow(data, orders), wishes, catalog)
    except ValueError as error:
        raise ValueError(f"{shown(path)}: {error}") from error
    return Batch(jobs=jobs, canvas=lambda job: changed_canvas(data, job.changes, orders))


def first_catalog(servers: Sequence[Server], pace: Pace) -> Catalog:
    """The nodes of the first server that answers.

    Raises:
        Unavailable: none does, after some tries.
        Refused: one is no ComfyUI, or wants a login.
    """
    for attempt in range(pace.tries):
        found = next(filter(None, map(_catalog, servers)), None)
        if found is not None:
            return found
        time.sleep(pace.retry * 2**attempt)
    told = ", ".join(str(server.address) for server in servers)
    raise Unavailable(f"no ComfyUI answers at {shown(told)}; start it, or check the address")


def _catalog(server: Server) -> Catalog | None:
    try:
        return Catalog(server.nodes())
    except Unavailable:
        return None


def run_batch(
    batch: Batch, servers: Sequence[Server], ledger: Ledger, watcher: Watcher, pace: Pace
) -> Pool:
    """Make what is not in ``ledger`` yet; returns when all ended, with what failed.

    Raises:
        KeyboardInterrupt: what was queued is cancelled.
        ValueError: servers refuse all prompts, or none is usable.
        OSError: no server answers any more, or results cannot be written.
    """
    pool = Pool(
        [job for job in batch.jobs if not ledger.has(job)],
        {str(server.address) for server in servers},
    )
    threads = [
        threading.Thread(
            target=Worker(server, pool, ledger, watcher, canvas=batch.canvas, pace=pace).work,
            name=str(server.address),
            daemon=True,
        )
        for server in servers
    ]
    try:
        for thread in threads:
            thread.start()
        while not pool.is_over:
            pool.wait(0.5)  # short, so that an interrupt is heard on every system
    finally:
        pool.stop()
        for thread in threads:
            thread.join(FAREWELL)
    if pool.error is not None:
        raise pool.error
    if pool.refused:
        raise ValueError(pool.refused)
    return pool
