"""What a run inside ComfyUI has of its own: it is kept on disk, goes on after whatever ended it, and every
result of its MODELs is looked at.

The guider makes one :class:`HostRun` for each run and puts it into ``model_options``. Our SAMPLERs find it
there and let it run their steps; in the loops of other SAMPLERs it sees single evaluations.
"""

from __future__ import annotations

import logging
import secrets
from contextlib import suppress
from functools import cache
from pathlib import Path

import folder_paths
import torch
from torch import Tensor

from ...wan.pipeline.keys import branch_points
from ...wan.sampling import Callback, Progress, sample
from ...wan.schedule import Schedule, Velocity
from ...wan.sentinel import Failure, Watch, check, out_of_memory
from ...wan.solvers import SOLVERS, Solver, SolverState
from ...wan.state import Keeper, RunKeys, RunState, Store, write_latents
from .files import output_slot
from .graph_key import UnknownOrigin
from .ladder import Ladder
from .run_key import name_start, remembering
from .start import Start

log = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
RESUME = (AUTO, OFF)
"""Whether what is kept of the same run is used."""
RESCUED = "latents/wan_rescued"
"""Where in the output folder the last good latents of a run go that could not go on."""


class HostRun:
    """One run: found again, kept, watched."""

    def __init__(self, start: Start, ladder: Ladder, *, resume: str) -> None:
        """Name the run; nothing is read or written. ``resume`` is one of ``RESUME``."""
        self.ladder = ladder
        self.told: tuple[str, ...] = ()
        self._start, self._total = start, start.plan.schedule.steps
        self._store = Store(folder=_folder())
        self._keys, self._unknown = _name(start)
        self._between = self._unknown or _between(start)
        self._keeper = Keeper(self._store, self._keys, self._total)
        self._taken = False
        self._good: Tensor | None = None
        if resume == OFF:
            self._store.forget(self._keys)

    @property
    def _to_the_end(self) -> bool:
        return float(self._start.plan.schedule.sigmas[-1]) == 0

    def finished(self) -> Tensor | None:
        """Raw latents (B, C, T, h, w) of this very run, if it was finished before."""
        latents = self._store.latents(self._keys.run)
        if latents is not None:
            self._tell("finished before; its latents are taken as they were kept, no step runs")
        return latents

    def take(self, sigmas: Tensor) -> bool:
        """Whether a SAMPLER of ours may hand its steps to :meth:`sample`: once, for the whole run."""
        whole = torch.equal(sigmas.detach().cpu().float(), self._start.plan.schedule.sigmas)
        if self._taken or not whole:
            return False
        self._taken = True
        return True

    def sample(
        self,
        velocity: Velocity,
        x: Tensor,
        schedule: Schedule,
        solver: Solver,
        *,
        callback: Callback,
        state: SolverState,
    ) -> Tensor:
        """``wan.sampling.sample`` from where the run is, kept after every step."""
        begun, ladder = self._begun(x), self.ladder
        watch = Watch(
            ladder=ladder.of_step(ladder.numbers(velocity)),
            relief=ladder.of_step(ladder.memory(velocity)),
            rescue=self._rescue,
            waits=branch_points(self._start.plan, self._start.sampler.wan_solver),
        )

        def after(progress: Progress) -> None:
            if not self._between:
                self._keeper.keep(progress.step, progress.x, progress.state, progress.verdict)
            callback(progress)

        if begun is not None:
            x, state = begun.x, begun.solver
            callback(_progress(begun, schedule))
        with self._keeper:
            return sample(
                velocity,
                x,
                schedule,
                solver,
                callback=after,
                start=0 if begun is None else begun.step,
                state=state,
                watch=watch,
            )

    def evaluate(self, ask: Velocity, x: Tensor, sigma: float) -> Tensor:
        """One evaluation of the guider; in the loop of a foreign SAMPLER it is looked at here."""
        if self._taken:
            return ask(x, sigma)
        watch = Watch(ladder=self.ladder.numbers(ask), relief=self.ladder.memory(ask))
        where = f"an evaluation at sigma {sigma:.4f}"
        result = _attempt(self.ladder.usual(ask), x, sigma)
        if isinstance(result, Failure):
            found = watch.again(result, lambda rung: _attempt(rung.build(), x, sigma), where)
            if isinstance(found, Failure):
                raise found.ending(where, self._rescue(0, x, self._good))
            result = found[0]
        self._good = result
        return result

    def finish(self, latents: Tensor) -> None:
        """Put the raw latents (B, C, T, h, w) of a finished run on the disk, before anything decodes them."""
        if self._to_the_end:
            self._keeper.finish(latents)

    def _begun(self, x: Tensor) -> RunState | None:
        if self._between:
            log.info("this run is not resumed between its steps: %s", self._between)
            return None
        begun = self._store.find(self._keys)
        if begun is None or begun.x.shape != x.shape or not begun.solver.history:
            return None
        whose = "this run" if begun.run == self._keys.run else "a run with the same beginning"
        self._tell(f"resumed after step {begun.step} of {self._total} (kept of {whose})")
        return begun.to(x.device)

    def _rescue(self, step: int, x: Tensor, denoised: Tensor | None) -> str:
        """Save the latest good prediction where people find it; says where."""
        del step, x
        if denoised is None:
            return ""
        form = self._start.models[0].get_model_object("latent_format")
        try:
            path, _ = output_slot(
                RESCUED, width=denoised.shape[-1], height=denoised.shape[-2], ending="_.latent"
            )
            write_latents(path, form.process_out(denoised.float().cpu()), self._keys.run, {})
        except (OSError, ValueError) as error:
            return f"the last good latents could not be saved ({error})"
        name = path.relative_to(folder_paths.get_output_directory()).as_posix()
        return f"the last good latents are in {name} of the output folder, for Load Latent"

    def _tell(self, told: str) -> None:
        self.told = (*self.told, told)
        log.warning("%s", told)


def _folder() -> Path:
    folder = Path(folder_paths.get_user_directory()) / "wanexperts" / "runs"
    with suppress(OSError):  # the first state that cannot be written says so
        folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _name(start: Start) -> tuple[RunKeys, str]:
    """The names of a run; one that nothing else can have, and why, where it cannot be known again."""
    try:
        return name_start(start), ""
    except UnknownOrigin as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - MODELs and conditionings of other packs may hold anything
        why = f"it has no name ({error!r})"
    log.info("this run is kept, but cannot be resumed: %s", why)
    return RunKeys(run=secrets.token_hex(32)), why


def _between(start: Start) -> str:
    """Why a run cannot be resumed between its steps; "" if it can."""
    if getattr(start.sampler, "wan_solver", None) not in SOLVERS:
        _say_loop_is_foreign()
        return "its SAMPLER is not ours"
    try:
        memory = remembering(start.models)
    except Exception as error:  # noqa: BLE001 - as above
        return f"what its MODELs carry is not known ({error!r})"
    return f"{memory} on a MODEL may remember earlier steps" if memory else ""


@cache
def _say_loop_is_foreign() -> None:
    log.info(
        "runs of ComfyUI's own samplers are watched, and their latents are kept, but they are not "
        "resumed between steps; use Wan Solver for that"
    )


def _attempt(ask: Velocity, x: Tensor, sigma: float) -> Tensor | Failure:
    try:
        denoised = ask(x, sigma)
    except torch.cuda.OutOfMemoryError as error:
        return out_of_memory(error)
    return check(denoised, sigma).failure or denoised


def _progress(begun: RunState, schedule: Schedule) -> Progress:
    """What the last step told before the run ended."""
    return Progress(
        step=begun.step,
        total=schedule.steps,
        sigma=schedule.sigmas[begun.step - 1].item(),
        x=begun.x,
        denoised=begun.solver.history[-1],
        state=begun.solver,
    )
