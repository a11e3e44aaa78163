"""The sentinel: whether numbers are fit to go on from, and what is tried where they are not.

The rule, for latents at noise level ``sigma``: normalised clean latents have unit variance by
construction and so has the noise, so latents at ``sigma`` are expected to have a root mean square
of ``sqrt((1 - sigma)**2 + sigma**2)``. A latent frame that is more than ``LEEWAY`` times above that is
broken, and so is one that has lost its noise: below ``sigma / LEEWAY``. So is NaN or infinity anywhere.
Clean predictions are held to the upper end of the rule for level 0.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from .schedule import Velocity

log = logging.getLogger(__name__)

LEEWAY = 50.0
"""How far from what is expected a latent frame may be. Honest runs of the tiny family (all solvers, 1 to
50 steps, shifts 1 to 12) come to at most 7.9 times what is expected at guidance 1 to 7, 16.8 times at
guidance 15, and never below 0.75 of the noise."""

NUMBERS, MEMORY = "numbers", "memory"
"""What a step can fail of."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why a step, or one evaluation of a network, has to be done again.

    Attributes:
        kind: ``NUMBERS`` or ``MEMORY``.
        told: what was seen, such as ``NaN or infinity in 2 of 21 latent frames``.
    """

    kind: str
    told: str

    def ending(self, where: str, kept: str = "") -> Exception:
        """The error that ends a run at ``where`` if nothing helped; ``kept`` says what was saved."""
        told = f"{where} gave {self.told}; "
        end = f"; {kept}" if kept else ""
        if self.kind == MEMORY:
            return torch.cuda.OutOfMemoryError(f"{told}use fewer frames or a smaller size{end}")
        return FloatingPointError(
            f"{told}use a wider compute dtype (bfloat16 instead of float16) or check the weights{end}"
        )


def out_of_memory(error: torch.cuda.OutOfMemoryError) -> Failure:
    """The failure that an error of the device is; its first sentence tells enough."""
    first = str(error).partition(". ")[0].partition("\n")[0]
    return Failure(kind=MEMORY, told=f"no result for want of memory ({first})")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Verdict:
    """What was measured of some latents; on CUDA the numbers may still be on their way.

    Attributes:
        squares: (n, B, F) float32 on the CPU: mean square of each of n tensors per sample and latent
            frame.
        levels: (n,) the noise level of each tensor.
        event: on CUDA, after which ``squares`` holds the numbers; None: it does already.
    """

    squares: Tensor
    levels: tuple[float, ...]
    event: torch.cuda.Event | None = None

    @property
    def arrived(self) -> bool:
        """Whether :attr:`failure` would not have to wait."""
        return self.event is None or bool(self.event.query())  # type: ignore[no-untyped-call]

    @property
    def failure(self) -> Failure | None:
        """What is wrong, or None; waits for the numbers."""
        if self.event is not None:
            self.event.synchronize()
        for squares, level in zip(self.squares, self.levels, strict=True):
            told = _trouble(squares.double().sqrt(), level)
            if told:
                return Failure(kind=NUMBERS, told=told)
        return None

    @property
    def good(self) -> bool:
        """Whether nothing is wrong; waits for the numbers."""
        return self.failure is None


FINE = Verdict(squares=torch.empty(0, 0, 0), levels=())
"""The verdict on what needs no check."""


def expected(sigma: float) -> float:
    """Root mean square that latents at noise level ``sigma`` are expected to have."""
    return math.hypot(1 - sigma, sigma)


def check(denoised: Tensor, sigma: float, *, x: Tensor | None = None) -> Verdict:
    """Measure a clean prediction and, if given, latents; nothing waits for the device.

    For a solver's step, ``x`` are the latents after it. For one evaluation of a network in a loop of
    another's, the clean prediction alone says enough.

    Args:
        denoised: (B, C, T, H, W) clean prediction; any other shape (B, ...) counts as one frame.
        sigma: noise level of ``x``, in [0, 1]; has no meaning without it.
        x: same shape.
    """
    given = [(denoised, 0.0)] if x is None else [(x, sigma), (denoised, 0.0)]
    squares = torch.stack([_mean_squares(tensor) for tensor, _ in given])
    levels = tuple(level for _, level in given)
    if squares.device.type != "cuda":
        return Verdict(squares=squares.cpu(), levels=levels)
    landed = torch.empty(squares.shape, dtype=squares.dtype, pin_memory=True)
    landed.copy_(squares, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(squares.device))
    return Verdict(squares=landed, levels=levels, event=event)


def _mean_squares(latents: Tensor) -> Tensor:
    """(B, F) float32; NaN and infinity in a frame come out as such."""
    frames = latents.transpose(1, 2) if latents.ndim == 5 else latents.unsqueeze(1)
    return frames.float().square().flatten(2).mean(2)


def _trouble(sizes: Tensor, level: float) -> str:
    """What is wrong with frames of root mean square ``sizes`` (B, F) at noise ``level``; "" for nothing."""
    finite = sizes.isfinite()
    if not bool(finite.all()):
        return f"NaN or infinity{_where(~finite)}"
    large, small = sizes > LEEWAY * expected(level), sizes < level / LEEWAY
    if bool(large.any()):
        times = sizes.max().item() / expected(level)
        return f"values {times:.3g} times larger than noise level {level:.4f} allows{_where(large)}"
    if bool(small.any()):
        return f"values without the noise of level {level:.4f}{_where(small)}"
    return ""


def _where(bad: Tensor) -> str:
    count, total = int(bad.any(0).sum()), bad.shape[1]
    return "" if count == total else f" in {count} of {total} latent frames"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rung:
    """Another, safer or smaller way to evaluate the same network.

    Attributes:
        name: what differs, as in "done again with <name>".
        build: called when the rung's turn comes; gives a new velocity, which knows nothing of what ran
            before, as one from :func:`~.experts.route` does.
    """

    name: str
    build: Callable[[], Velocity]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Watch:
    """What to do about a step that fails; the plain one ends the run.

    Attributes:
        ladder: tried in this order where numbers are bad, for that step alone.
        relief: tried in this order where memory ran out; what helps stays for the rest of the run.
        rescue: ``(steps, x, denoised)``, called before the run ends because nothing helped, with the
            number of good steps, the latents after them and the latest clean prediction (None before
            the first step); keeps them, and says in words where, or "".
        waits: steps (0..N-1) that are not begun before the verdict on the one before has arrived,
            because it costs more to begin them in vain: those that load another expert.
    """

    ladder: Sequence[Rung] = ()
    relief: Sequence[Rung] = ()
    rescue: Callable[[int, Tensor, Tensor | None], str] | None = None
    waits: Collection[int] = ()

    def again(
        self, failure: Failure, attempt: Callable[[Rung], T | Failure], where: str
    ) -> tuple[T, Rung] | Failure:
        """Climb until an attempt succeeds: each failure takes the next rung of its own kind.

        Args:
            failure: of the first attempt.
            attempt: does the same again by a rung.
            where: for the log, such as ``step 3 of 8``.

        Returns:
            What the attempt gave and the rung that gave it, or the last failure if none is left.
        """
        rungs: dict[str, Iterator[Rung]] = {NUMBERS: iter(self.ladder), MEMORY: iter(self.relief)}
        while (rung := next(rungs[failure.kind], None)) is not None:
            log.warning("%s gave %s; it is done again with %s", where, failure.told, rung.name)
            result = attempt(rung)
            if not isinstance(result, Failure):
                return result, rung
            failure = result
        return failure


PLAIN = Watch()
