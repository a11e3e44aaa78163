"""Our schedules and solvers in ComfyUI's terms: SIGMAS, a ``model_sampling`` object, a SAMPLER."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_sampling
import comfy.samplers
import torch
from torch import Tensor

from ...wan.sampling import Progress, sample
from ...wan.schedule import (
    OFFICIAL_SIGMA_MAX,
    TRAIN_TIMESTEPS,
    Schedule,
    make_schedule,
    shift_sigma,
)
from ...wan.solvers import SolverState, get_solver

OFFICIAL = "unipc"
GRID_TOLERANCE = 1e-6
RUN = "wan_experts_run"
"""Key of ``model_options`` under which a SAMPLER of ours finds the :class:`~.runs.HostRun` that takes its
steps; absent with other guiders."""

_MADE: WeakKeyDictionary[torch.UntypedStorage, tuple[Schedule, float | None]] = WeakKeyDictionary()
"""What :func:`as_sigmas` gave away and is still held somewhere: its schedule and shift. By storage,
because that is what a tensor shares with its slices."""


class _Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """What ComfyUI's schedulers ask a flow-matching model of."""


def pure_noise(shift: float) -> float:
    """The level at and above which a run starts from noise alone: the top of the official grid."""
    return shift_sigma(OFFICIAL_SIGMA_MAX, shift)


class WanSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Flow sampling in which the network is told exactly what ``schedule`` says."""

    def __init__(self, schedule: Schedule, shift: float) -> None:
        """``shift`` places the level of pure noise and the percents of conditionings."""
        super().__init__()
        self.set_parameters(shift=shift)
        self._schedule = schedule

    @property
    def sigma_max(self) -> Tensor:
        """The level of pure noise, whatever part of the way the run under way goes."""
        return torch.tensor(pure_noise(self.shift))

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the network is given at noise levels ``sigma`` (B,)."""
        values = [self._schedule.timestep(level) for level in sigma.flatten().tolist()]
        return torch.tensor(values, dtype=torch.float32, device=sigma.device).view(sigma.shape)

    def noise_scaling(
        self, sigma: Tensor, noise: Tensor, latent_image: Tensor, max_denoise: bool = False
    ) -> Tensor:
        """The start of a run; at pure noise it is the noise itself, as the official code has it."""
        if max_denoise:
            return noise
        return super().noise_scaling(sigma, noise, latent_image, max_denoise)


def with_schedule(patcher: Any, schedule: Schedule, shift: float) -> Any:
    """A clone of a MODEL that is told the schedule's timesteps; the caller's MODEL stays as it is."""
    clone = patcher.clone()
    clone.add_object_patch("model_sampling", WanSampling(schedule, shift))
    return clone


def foreign_shift(patcher: Any, shift: float) -> str:
    """What to tell of a ``model_sampling`` patch that :func:`with_schedule` replaces; "" for none."""
    patch = getattr(patcher, "object_patches", {}).get("model_sampling")
    own = getattr(patch, "shift", None)
    if patch is None or own == shift:
        return ""
    told = "a sampling patch" if own is None else f"a sampling patch of shift {own:g}"
    return f"{told} on a MODEL is not used; sigma_shift {shift:g} of this node is"


def scheduler_names() -> list[str]:
    """ComfyUI's schedulers at this moment; other packs may add some."""
    return list(comfy.samplers.SCHEDULER_NAMES)


def core_schedule(name: str, steps: int, shift: float) -> Schedule:
    """The grid of ComfyUI's scheduler ``name`` for a flow model of this shift; it may drop steps.

    Raises:
        ValueError: it does not give noise levels of flow matching.
    """
    flow = _Flow()
    flow.set_parameters(shift=shift)
    return plain(comfy.samplers.calculate_sigmas(flow, name, steps), name=name)


def as_sigmas(schedule: Schedule, shift: float | None) -> Tensor:
    """SIGMAS (N+1,) float32 of a schedule, which :func:`recognise` knows again; its shift if it has one.

    A tensor cannot say which timesteps belong to its noise levels, and the levels do not always tell:
    the DPM++ grid has those of the plain one. So the memory of the tensor is remembered; what other
    nodes cut out of it (SplitSigmas) is known, what they compute from it is not.
    """
    sigmas = schedule.sigmas.clone()
    _MADE[sigmas.untyped_storage()] = schedule, shift
    return sigmas


def recognise(sigmas: Tensor, shift: float) -> Schedule:
    """The schedule behind SIGMAS from another node.

    What :func:`as_sigmas` made, or a part of it, has its own timesteps. Elsewhere the whole official
    UniPC grid is known by its levels and gets its whole timesteps; any other grid gets ``1000 *
    sigma``, an official DPM++ grid among them.

    Args:
        sigmas: (N+1,) descending noise levels.
        shift: shift of the official grid to compare with.

    Raises:
        ValueError: these are not noise levels of flow matching.
    """
    given = plain(sigmas)
    made, _ = _MADE.get(sigmas.untyped_storage(), (None, None))
    if made is not None and (part := _part(made, sigmas.storage_offset(), given.sigmas)):
        return part
    official = make_schedule(OFFICIAL, steps=given.steps, shift=shift)
    if not torch.allclose(official.sigmas, given.sigmas, rtol=0, atol=GRID_TOLERANCE):
        return given
    return Schedule(name=OFFICIAL, sigmas=given.sigmas, timesteps=official.timesteps)


def shift_behind(sigmas: Tensor, shift: float) -> float:
    """The shift that SIGMAS of :func:`as_sigmas` were made with; ``shift`` for any others."""
    _, own = _MADE.get(sigmas.untyped_storage(), (None, None))
    return shift if own is None else own


def _part(made: Schedule, first: int, sigmas: Tensor) -> Schedule | None:
    """``sigmas`` (N+1,) as levels ``first``, ``first + 1``, ... of ``made``; None if they are not."""
    last = first + sigmas.numel() - 1
    if not torch.equal(made.sigmas[first : last + 1], sigmas):
        return None
    return Schedule(name=made.name, sigmas=sigmas, timesteps=made.timesteps[first:last])


def plain(sigmas: Tensor, *, name: str = "custom") -> Schedule:
    """A schedule on any descending ``sigmas`` (N+1,), with fractional timesteps."""
    sigmas = sigmas.detach().to("cpu", torch.float32)
    return Schedule(name=name, sigmas=sigmas, timesteps=sigmas[:-1].double() * TRAIN_TIMESTEPS)


def solver_sampler(name: str) -> Any:
    """One of our solvers as a SAMPLER, usable by any ComfyUI guider."""
    solver = get_solver(name)

    def solve(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any] | None = None,
        callback: Any = None,
        disable: bool | None = None,
    ) -> Tensor:
        options = extra_args or {}
        batch = x.new_ones(x.shape[0])
        # Core gives every sampler the seed of the run; without one, LCM's noise is that of seed 0.
        start = SolverState(seed=options.get("seed") or 0)

        def velocity(x: Tensor, sigma: float) -> Tensor:
            denoised = model(x, sigma * batch, **options)
            return (x - denoised) / sigma

        def report(progress: Progress) -> None:
            callback(
                {
                    "i": progress.step - 1,
                    "x": progress.x,
                    "denoised": progress.denoised,
                    "sigma": progress.sigma,
                    "sigma_hat": progress.sigma,
                }
            )

        run, told = options.get("model_options", {}).get(RUN), report if callback else _unheard
        drive = run.sample if run is not None and run.take(sigmas) else sample
        return drive(velocity, x, plain(sigmas), solver, callback=told, state=start)

    sampler = comfy.samplers.KSAMPLER(solve)
    sampler.wan_solver = name  # a forecast asks for it
    return sampler


def _unheard(_: Progress) -> None:
    """For a run that nobody watches."""
