"""One server at work: a prompt after the other, and what to do when it goes away."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from .catalog import Catalog
from .jobs import Job
from .ledger import Ledger
from .pool import LOSSES, Pool
from .server import Ended, Missing, Refused, Server, Unavailable
from .websocket import WebSocket

ENDINGS = ("execution_success", "execution_error", "execution_interrupted")
SOON = 0.05
"""Seconds in which a server writes down what it told has ended."""
GOODBYE = 5.0
"""Seconds a server has to hear that its prompts are cancelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds between looks at a server.

    Attributes:
        poll: without a websocket.
        heartbeat: with one, which may be dead without a word.
        retry: before the first new try; each waits twice as long as the last, at most ``longest``.
        longest: see ``retry``.
        tries: new tries before a server's prompts go to others.
        patience: without an answer of any server before all ends.
    """

    poll: float = 1.0
    heartbeat: float = 10.0
    retry: float = 0.5
    longest: float = 30.0
    tries: int = 4
    patience: float = 300.0


class Watcher(Protocol):
    """Who is told what happens, by several threads."""

    def step(self, server: str, job: Job, what: str, done: int, total: int) -> None:
        """A node is at ``done`` of ``total``."""

    def finished(self, server: str, job: Job, files: list[Path]) -> None:
        """The results of ``job`` are here."""

    def say(self, server: str, sentence: str) -> None:
        """Something a person should know."""


@dataclass(slots=True, eq=False)
class _Run:
    """A prompt on this server."""

    job: Job
    prompt: str
    submitted: bool = False
    ending: bool = False
    ended: Ended | None = None


class Worker:
    """A server that works through a pool. One prompt of ours is in its queue at a time: the next one
    goes there before the results of the last one are fetched.
    """

    def __init__(
        self,
        server: Server,
        pool: Pool,
        ledger: Ledger,
        watcher: Watcher,
        *,
        canvas: Callable[[Job], Mapping[str, Any] | None] = lambda _: None,
        pace: Pace = Pace(),
    ) -> None:
        """``canvas`` gives the UI file of a prompt, if there is one."""
        self._server, self._pool, self._ledger, self._watcher = server, pool, ledger, watcher
        self._canvas, self._pace = canvas, pace
        self._name = str(server.address)
        self._client = uuid.uuid4().hex
        self._socket: WebSocket | None = None
        self._listen_again = 0.0
        self._known = False
        self._runs: list[_Run] = []
        self._given_away: list[_Run] = []

    def work(self) -> None:
        """Until the pool is over; what is still in the server's queue then is cancelled."""
        try:
            while not self._pool.is_over:
                self._turn()
        except Refused as error:
            self._abandon()
            self._pool.leave(self._name, error)
        except Exception as error:  # noqa: BLE001 - a thread's errors end the command
            self._pool.stop(error)
        finally:
            self._leave()

    def _turn(self) -> None:
        try:
            self._round()
        except Unavailable as error:
            self._away(error)

    def _round(self) -> None:
        self._meet()
        for run in self._runs:
            if run.ended is None:
                self._look(run)
        if all(run.ended for run in self._runs):
            wait = 0.0 if self._runs else self._pace.poll
            job = self._pool.take(self._name, wait)
            if job is not None:
                self._begin(job)
        ended = next((run for run in self._runs if run.ended), None)
        if ended is not None:
            self._fetch(ended)
        elif self._runs:
            self._listen(self._runs[0])

    def _meet(self) -> None:
        """Once: whether this server has the nodes of the workflow."""
        if self._known:
            return
        catalog = Catalog(self._server.nodes())
        kinds = {node["class_type"] for node in self._pool.jobs[0].graph.values()}
        if missing := sorted(kind for kind in kinds if kind not in catalog):
            raise Refused(f"{self._name} has no node {', '.join(missing)}; install its pack there")
        self._known = True

    def _begin(self, job: Job) -> None:
        """Make a prompt this server's, unless it has done it before or does it already."""
        run = _Run(job, job.prompt(0))
        self._runs.append(run)
        self._hear()  # from its first event on
        for attempt in count():
            run.prompt = job.prompt(attempt)
            if run.prompt in self._server.queued():
                run.submitted = True
                return
            run.ended = self._server.ended(run.prompt)
            if run.ended is None:
                self._submit(run)
                return
            if not run.ended.problem:
                return
            run.ended = None  # it failed or was interrupted before: once more under another id

    def _submit(self, run: _Run) -> None:
        if self._pool.is_deadly(run.job):
            self._runs.remove(run)
            self._pool.fail(
                run.job, f"{LOSSES} times a server ended while it ran; see the server's log"
            )
            return
        try:
            graph, canvas = run.job.graph, self._canvas(run.job)
            self._server.submit(graph, run.prompt, self._client, canvas)
        except Refused as error:
            self._runs.remove(run)
            self._pool.refuse(run.job, self._name, str(error))
            return
        run.submitted = True
        self._pool.heard()

    def _look(self, run: _Run) -> None:
        """Learn whether a prompt is over. The queue first: what leaves it is in the history by then."""
        queued = self._server.queued()
        self._pool.heard()
        if run.prompt in queued:
            run.submitted = True
            return
        run.ended = self._server.ended(run.prompt)
        if run.ended is not None:
            return
        if run.submitted:
            self._pool.lose(run.job)
            run.submitted = run.ending = False
        self._submit(run)

    def _fetch(self, run: _Run) -> None:
        ended = run.ended
        assert ended is not None
        if ended.problem:
            self._pool.fail(run.job, ended.problem)
        else:
            try:
                files = self._ledger.keep(self._server, run.job, run.prompt, ended)
            except Missing as error:
                self._pool.fail(run.job, f"{error}; change filename_prefix to make it again")
            else:
                self._watcher.finished(self._name, run.job, files)
                self._pool.finish(run.job)
        self._runs.remove(run)

    def _listen(self, run: _Run) -> None:
        """Wait until the server tells of an end, or until it is time to look."""
        if run.ending:  # it is told before it is written down
            self._pool.wait(SOON)
            return
        end = time.monotonic() + self._pace.heartbeat
        if self._socket is None:
            if not self._hear():
                self._pool.wait(self._pace.poll)
            return
        while not self._pool.is_over and time.monotonic() < end:
            try:
                message = self._socket.receive(min(0.5, self._pace.heartbeat))
            except ConnectionError:
                self._deaf()
                return
            if isinstance(message, str) and self._over(run, message):
                run.ending = True
                return

    def _hear(self) -> bool:
        """Whether there is a websocket, if need be a new one."""
        if self._socket is None and time.monotonic() >= self._listen_again:
            try:
                self._socket = self._server.listen(self._client)
            except OSError:
                self._deaf()
        return self._socket is not None

    def _deaf(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._listen_again = time.monotonic() + 5 * self._pace.poll

    def _over(self, run: _Run, message: str) -> bool:
        """Show an event; True if it ends the prompt."""
        try:
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != run.prompt:
                return False
            if kind == "progress":
                node = run.job.graph.get(str(data.get("node")), {})
                title = node.get("_meta", {}).get("title", "")
                self._watcher.step(self._name, run.job, title, int(data["value"]), int(data["max"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return False  # not an event of ComfyUI as we know it
        return kind in ENDINGS

    def _away(self, error: Unavailable) -> None:
        """Try again until the server answers; its prompts go to others meanwhile."""
        self._deaf()
        self._listen_again = 0.0
        for attempt in count():
            if attempt == self._pace.tries:
                self._watcher.say(self._name, f"{error}; its prompts go to others until it is back")
                self._abandon()
            if self._pool.silence > self._pace.patience:
                self._pool.stop(
                    OSError(
                        f"no server has answered for {self._pace.patience:.0f} s (last: {error}); start "
                        "one, and the same command goes on"
                    )
                )
            self._pool.wait(min(self._pace.retry * 2 ** min(attempt, 20), self._pace.longest))
            if self._pool.is_over:
                return
            with suppress(Unavailable):
                self._reclaim(self._server.queued())
                if attempt >= self._pace.tries:
                    self._watcher.say(self._name, f"{self._name} is back")
                return

    def _abandon(self) -> None:
        """Let others have what this server was to do."""
        for run in self._runs:
            self._pool.give_back(run.job)
        self._given_away += self._runs
        self._runs = []

    def _reclaim(self, queued: set[str]) -> None:
        """Cancel here what others have meanwhile; what none has taken is found again when it is taken."""
        for run in self._given_away:
            if run.prompt not in queued:
                if run.submitted and self._server.ended(run.prompt) is None:
                    self._pool.lose(run.job)
            elif not self._pool.is_free(run.job):
                self._server.cancel([run.prompt])
        self._given_away = []

    def _leave(self) -> None:
        """Cancel what is still in the queue."""
        with suppress(Unavailable, Refused):
            left = [run.prompt for run in (*self._runs, *self._given_away) if run.ended is None]
            Server(self._server.address, timeout=GOODBYE).cancel(left)
        if self._socket is not None:
            self._socket.close()
