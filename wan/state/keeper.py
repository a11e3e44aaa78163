"""Keeping a run while it runs: a thread writes, the steps never wait for the disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ..files import shown
from ..sentinel import FINE, Verdict
from ..solvers import SolverState
from .files import RunState, write_latents, write_state
from .store import BRANCH, LATENT, RING, RunKeys, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Job:
    """A state to write once its copy has arrived and its verdict is good."""

    state: RunState
    verdict: Verdict
    copied: torch.cuda.Event | None


class Keeper:
    """Keeps one run in a store: after each step, at each change of stages, and when it is done.

    Use it as a context: on the way out, by an error or an interrupt too, the newest state is on the
    disk. States go to two files in turn, so that one is always whole. If the disk lags behind, states
    in between are left out; those between two stages are not. A disk that is full or a folder that
    cannot be written costs one sentence in the log, never the run.
    """

    def __init__(
        self, store: Store, keys: RunKeys, total: int, manifest: Mapping[str, object] | None = None
    ) -> None:
        """For a run of ``total`` steps; ``manifest`` (plain JSON) goes into its files."""
        self._store, self._keys, self._total = store, keys, total
        self._manifest = dict(manifest or {})
        self._lock = threading.Lock()
        self._newest: _Job | None = None
        self._branches: list[_Job] = []
        self._thread: threading.Thread | None = None
        self._trouble = ""
        self._slot = 0
        self._kept = 0
        self._side: torch.cuda.Stream | None = None

    def __enter__(self) -> Keeper:
        """Nothing starts before there is something to keep."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait until what was kept is on the disk; say after which step, if the run did not end well."""
        self.flush()
        if kind is not None and self._kept:
            log.warning(
                "the run is kept after step %d of %d in %s",
                self._kept, self._total, shown(self._store.folder),
            )  # fmt: skip

    def keep(self, step: int, x: Tensor, solver: SolverState, verdict: Verdict = FINE) -> None:
        """Keep the run after ``step`` steps (1..N); returns at once, on CUDA without waiting for it.

        Args:
            step: steps done.
            x: (B, C, T, H, W) latents after them; nobody may write into it or into ``solver``.
            solver: the solver's memory.
            verdict: the state is written only if it turns out good.
        """
        if self._trouble:
            return
        try:
            job = self._job(step, x, solver, verdict)
        except RuntimeError as error:  # no memory for the copy
            self._give_up(error)
            return
        with self._lock:
            if step in self._keys.branches:
                self._branches.append(job)
            else:
                self._newest = job
            if self._thread is None:
                # It ends when there is nothing to write: an interrupt at any moment leaves no thread.
                self._thread = threading.Thread(target=self._write, name="keep run", daemon=True)
                self._thread.start()

    def flush(self) -> None:
        """Wait until what was kept is on the disk."""
        thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join()
        self._write()  # what an interrupted start of the thread has left

    def finish(self, latents: Tensor, metadata: Mapping[str, str] | None = None) -> Path | None:
        """Put a finished run's raw latents (B, C, T, h, w) on the disk and forget its states.

        Returns:
            Their file, which :meth:`Store.latents` reads; None if it could not be written.
        """
        self.flush()
        path = self.save(latents, LATENT, metadata)
        if path is not None:
            self._store.forget_states(self._keys.run)
        return path

    def save(
        self, latents: Tensor, ending: str, metadata: Mapping[str, str] | None = None
    ) -> Path | None:
        """Put raw latents (B, C, T, h, w) on the disk now; returns their file, None if that failed."""
        path = self._store.path(self._keys.run, ending)
        try:
            self._store.folder.mkdir(exist_ok=True)
            write_latents(path, latents, self._keys.run, metadata or {})
            self._store.prune(self._keys)
        except OSError as error:
            self._give_up(error)
            return None
        return path

    def _job(self, step: int, x: Tensor, solver: SolverState, verdict: Verdict) -> _Job:
        branch = self._keys.branches.get(step)
        last = () if solver.last is None else (solver.last,)
        (x, *rest), copied = self._copies((x, *last, *solver.history))
        held = replace(
            solver,
            last=rest.pop(0) if last else None,
            history=tuple(rest),
        )
        state = RunState(
            key=branch or self._keys.run,
            run=self._keys.run,
            step=step,
            total=self._total,
            x=x,
            solver=held,
            manifest=self._manifest,
        )
        return _Job(state=state, verdict=verdict, copied=copied)

    def _copies(self, tensors: tuple[Tensor, ...]) -> tuple[list[Tensor], torch.cuda.Event | None]:
        """The tensors on the CPU; on CUDA their copies are under way beside the run's own work."""
        device = tensors[0].device
        if device.type != "cuda":
            return [tensor.detach().cpu() for tensor in tensors], None
        if self._side is None:
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._side):
            copies = []
            for tensor in tensors:
                tensor.record_stream(self._side)
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies.append(copy.copy_(tensor, non_blocking=True))
            return copies, self._side.record_event()

    def _write(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._write_one(job)
            except (OSError, RuntimeError, MemoryError) as error:
                self._give_up(error)
            del job

    def _next(self) -> _Job | None:
        """The next job; None, and the end of the thread, where there is none."""
        with self._lock:
            if self._branches:
                return self._branches.pop(0)
            job, self._newest = self._newest, None
            if job is None:
                self._thread = None
            return job

    def _write_one(self, job: _Job) -> None:
        if job.copied is not None:
            job.copied.synchronize()
        if self._trouble or not job.verdict.good:
            return
        state = job.state
        if state.key == self._keys.run:
            path = self._store.path(state.key, RING[self._slot])
        else:
            path = self._store.path(state.key, BRANCH)
        first = not self._kept
        self._store.folder.mkdir(exist_ok=True)
        write_state(path, state)
        if state.key == self._keys.run:
            self._slot = 1 - self._slot
        self._kept = max(self._kept, state.step)
        if first or path.name.endswith(BRANCH):
            self._store.prune(self._keys)

    def _give_up(self, error: Exception) -> None:
        """Say once that this run is not kept any more."""
        if not self._trouble:
            self._trouble = str(error)
            log.warning("the rest of this run is not kept: %s; the run goes on", _why(error))


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "the disk took only a part of it"
    return shown(error)
