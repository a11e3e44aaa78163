"""Who works on which prompt: it waits here or is with one server, who alone gives it back or ends it, so
nothing is lost or made twice.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Collection, Iterable

from .jobs import Job

LOSSES = 3
"""Servers that may go away while they run a prompt before it is taken for the reason."""


class Pool:
    """The prompts of a command and the servers that share them; used by several threads."""

    def __init__(self, jobs: Iterable[Job], servers: Collection[str]) -> None:
        """``servers`` are their names."""
        self.jobs = tuple(jobs)
        self._change = threading.Condition()
        self._waiting = deque(self.jobs)
        self._left = len(self._waiting)
        self._servers = set(servers)
        self._refusals: dict[Job, dict[str, str]] = {}
        self._losses: dict[Job, int] = {}
        self._seen = time.monotonic()
        self._stopped = self._left == 0
        self.done: list[Job] = []
        self.failed: dict[Job, str] = {}
        self.error: Exception | None = None

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to do: all ended, or stopped."""
        return self._stopped

    @property
    def silence(self) -> float:
        """Seconds since any server answered."""
        return time.monotonic() - self._seen

    @property
    def refused(self) -> str:
        """Why servers refuse every prompt there is, by the first; empty if some had another fate."""
        if not self.jobs or not self._refusals.keys() >= set(self.jobs) == self.failed.keys():
            return ""
        job = self.jobs[0]
        return f"{job.name}: {self.failed[job]}"

    def heard(self) -> None:
        """A server has answered."""
        self._seen = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Sleep until all is over, at most so long."""
        with self._change:
            self._change.wait_for(lambda: self._stopped, seconds)

    def take(self, server: str, seconds: float = 0.0) -> Job | None:
        """A prompt that is ``server``'s from now on; None if none comes in time."""
        with self._change:
            self._change.wait_for(lambda: self._stopped or self._next(server) is not None, seconds)
            job = None if self._stopped else self._next(server)
            if job is not None:
                self._waiting.remove(job)
            return job

    def give_back(self, job: Job) -> None:
        """Its server is away: others may have it, before what waits."""
        with self._change:
            self._waiting.appendleft(job)
            self._change.notify_all()

    def lose(self, job: Job) -> None:
        """A server came back without it: it ended while the prompt ran, or waited."""
        with self._change:
            self._losses[job] = self._losses.get(job, 0) + 1

    def is_deadly(self, job: Job) -> bool:
        """Whether servers ended so often with it that it must be the reason."""
        return self._losses.get(job, 0) >= LOSSES

    def refuse(self, job: Job, server: str, why: str) -> None:
        """``server`` does not want it; it fails when none does."""
        with self._change:
            self._refusals.setdefault(job, {})[server] = why
            everywhere = self._servers <= self._told(job).keys()
        if everywhere:
            self.fail(job, why)
        else:
            self.give_back(job)

    def leave(self, server: str, why: Exception) -> None:
        """``server`` cannot be used at all; without another all stops for this reason."""
        with self._change:
            self._servers.discard(server)
            unwanted = [job for job in self._waiting if self._servers <= self._told(job).keys()]
            for job in unwanted if self._servers else ():
                self._waiting.remove(job)
                self.fail(job, next(iter(self._told(job).values())))
            if self._servers:
                return
        self.stop(why)

    def finish(self, job: Job) -> None:
        """Its results are here."""
        with self._change:
            self.done.append(job)
            self._end(job)

    def fail(self, job: Job, why: str) -> None:
        """It will have no results."""
        with self._change:
            self.failed[job] = why
            self._end(job)

    def stop(self, error: Exception | None = None) -> None:
        """End all work; the first ``error`` is kept."""
        with self._change:
            self.error = self.error or error
            self._stopped = True
            self._change.notify_all()

    def is_free(self, job: Job) -> bool:
        """Whether it waits for a server."""
        return job in self._waiting

    def _next(self, server: str) -> Job | None:
        return next((job for job in self._waiting if server not in self._told(job)), None)

    def _told(self, job: Job) -> dict[str, str]:
        """Server -> why it refuses ``job``."""
        return self._refusals.get(job, {})

    def _end(self, job: Job) -> None:
        self._left -= 1
        self._stopped = self._stopped or self._left == 0
        self._change.notify_all()
