"""What a run will take: calls, operations, seconds, memory and disk, before anything heavy is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod

import torch

from ..config import TextConfig, TransformerConfig, VAEConfig
from ..plan import RunPlan
from ..shapes import SPATIAL_STRIDE, LatentShape, pixel_frames, pixel_size, token_grid
from ..transformer import EXACT, Memory
from ..vae import COUNTED, decode_bytes, decode_dtype, strips_for, tiny_bytes
from .flops import forward_flops
from .forwards import StageForwards, count_forwards, evaluated_levels
from .memory import Expert, step_bytes, text_bytes
from .room import device_bytes
from .timing import Measurement

TEXT, SAMPLING, DECODING = "text", "sampling", "decoding"
"""Phases of a run, each with one network on the device."""
RING = 2
"""State files that are written in turn; one more is kept at each change of stages."""
FILE_BITS = 0.5
"""Bits per pixel of an H.264 file at the default rate factor; busy clips take several times that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Weights as they lie on the device: bytes, and the dtype that most of them have."""

    nbytes: int
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True, slots=True)
class Networks:
    """What runs: sizes and weights, as headers tell them.

    Attributes:
        transformer: sizes of the experts.
        dtype: the experts compute in.
        device: kind of device they run on, such as ``cpu`` or ``cuda``.
        experts: weights of each expert.
        text: sizes of the text encoder and its weights; None leaves it out.
        vae: sizes of the VAE and its weights; None leaves it out.
        tiny: whether a tiny decoder stands in for the VAE.
        memory: what a forward of an expert holds how.
        together: tokens up to which all clips and both prompts go through an expert side by side, and
            beyond which one after the other; None for all clips with one prompt at a time.
    """

    transformer: TransformerConfig
    dtype: torch.dtype
    device: str
    experts: tuple[Weights, ...]
    text: tuple[TextConfig, Weights] | None = None
    vae: tuple[VAEConfig, Weights] | None = None
    tiny: bool = False
    memory: Memory = EXACT
    together: int | None = None

    @property
    def all(self) -> list[Weights]:
        """The weights of every network."""
        others = [part[1] for part in (self.text, self.vae) if part is not None]
        return [*self.experts, *others]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Memory of one phase of a run on the device: one network is there at a time.

    Attributes:
        name: ``TEXT``, ``SAMPLING`` or ``DECODING``.
        weights: bytes of the network's weights.
        working: bytes beside them at the widest moment.
    """

    name: str
    weights: int
    working: int

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.working


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecast:
    """What a run will take.

    Attributes:
        stages: calls of each stage's network.
        forward_flops: operations of one call for all clips of the batch.
        measured: what seconds are told from; None tells none.
        device: its kind, such as ``cpu`` or ``cuda``.
        phases: memory on the device, in the order of the run.
        hidden: bytes of main memory that hold the hidden state of a forward on another device.
        mapped: bytes of weights that are read from disk; the system keeps them while it has room.
        state: bytes on disk that a run needs to go on after it was ended.
        latents: bytes of the finished latents on disk.
        file: bytes of the clip's file, roughly.
        image: bytes of all decoded frames at once, (frames, H, W, 3) float32, as an IMAGE holds them.
    """

    stages: tuple[StageForwards, ...]
    forward_flops: int
    measured: Measurement | None
    device: str
    phases: tuple[Phase, ...]
    hidden: int
    mapped: int
    state: int
    latents: int
    file: int
    image: int

    @property
    def forwards(self) -> int:
        """Calls of all stages."""
        return sum(stage.forwards for stage in self.stages)

    @property
    def flops(self) -> int:
        """Operations of sampling."""
        return self.forwards * self.forward_flops

    @property
    def seconds(self) -> float | None:
        """Seconds of sampling, weights being there; None without a measurement."""
        return self.seconds_of(self.forwards)

    def seconds_of(self, forwards: int) -> float | None:
        """Seconds of some of the calls."""
        if self.measured is None:
            return None
        return forwards * self.measured.seconds_for(self.forward_flops)

    @property
    def peak(self) -> int:
        """Bytes on the device in the widest phase."""
        return max(phase.total for phase in self.phases)

    @property
    def drawn(self) -> int:
        """Bytes of latents at both ends of sampling: the noise, what it starts from, what comes out."""
        return 3 * self.latents

    @property
    def host(self) -> int:
        """Bytes of main memory beside the weights in sampling on another device.

        On their way to the disk are as many states as are kept there: one is written, one waits, and
        one more at each change of stages.
        """
        return self.hidden + self.state + self.drawn


def make_forecast(
    plan: RunPlan,
    networks: Networks,
    shape: LatentShape,
    *,
    solver: str,
    batch: int = 1,
    levels: Sequence[float] | None = None,
    measured: Measurement | None = None,
) -> Forecast:
    """What a run of ``plan`` over ``batch`` clips of ``shape`` will take.

    Args:
        plan: steps and stages.
        networks: what runs.
        shape: latents of one clip.
        solver: a key of ``SOLVERS``; where a foreign one runs, the one nearest to it in memory.
        batch: clips at a time.
        levels: noise levels at which a foreign solver evaluates; None asks ``solver``.
        measured: a forward of these networks, of any shape, timed on this machine.
    """
    if levels is None:
        levels = evaluated_levels(solver, plan.schedule.sigmas)
    stages = count_forwards(plan, list(levels))
    expert = Expert(
        config=networks.transformer,
        dtype=networks.dtype,
        device=networks.device,
        stored=networks.experts[0].dtype,
        memory=networks.memory,
    )
    guided = sum(stage.forwards for stage in stages) > len(levels)
    tokens = token_grid(*shape[1:]).tokens
    step = step_bytes(expert, shape, solver=solver, guided=guided, batch=batch)
    forward, samples = step, batch
    if networks.together is not None:
        samples = batch * (2 if guided else 1)
        samples = samples if samples * tokens <= networks.together else 1
    if samples != batch:
        forward = step_bytes(expert, shape, solver=solver, guided=guided, batch=samples)
    height, width = pixel_size(shape.height, shape.width)
    pixels = batch * pixel_frames(shape.frames) * height * width
    return Forecast(
        stages=stages,
        forward_flops=batch * forward_flops(networks.transformer, tokens),
        measured=measured,
        device=networks.device,
        phases=_phases(networks, forward.peak, height, width, batch * prod(shape) * 4),
        hidden=forward.away,
        mapped=sum(weights.nbytes for weights in networks.all),
        state=(RING + len([stage for stage in stages if stage.steps]) - 1) * step.state,
        latents=batch * prod(shape) * 4,
        file=int(pixels * FILE_BITS / 8),
        image=pixels * 3 * 4,
    )


def _phases(
    networks: Networks, step: int, height: int, width: int, latents: int
) -> tuple[Phase, ...]:
    found = []
    if networks.text is not None:
        text, weights = networks.text
        working = text_bytes(text, weights.dtype)
        found.append(Phase(name=TEXT, weights=weights.nbytes, working=working))
    largest = max(weights.nbytes for weights in networks.experts)
    found.append(Phase(name=SAMPLING, weights=largest, working=step))
    if networks.vae is not None:
        vae, weights = networks.vae
        dtype = decode_dtype(networks.device)
        if networks.tiny:
            grid = height // SPATIAL_STRIDE, width // SPATIAL_STRIDE
            decoding = tiny_bytes(*grid, dtype)
        else:
            room = COUNTED * (_decoding_room(networks.device) - weights.nbytes - latents)
            plan = strips_for(height, width, vae, dtype, room)
            decoding = decode_bytes(height, width, vae, dtype, plan)
        found.append(Phase(name=DECODING, weights=weights.nbytes, working=latents + decoding))
    return tuple(found)


def _decoding_room(device: str) -> float:
    """Bytes by which a plan for decoding is chosen; not where no CUDA device is, see ``decode_within``."""
    if device == "cuda" and torch.cuda.is_available():
        return device_bytes(torch.device(device))
    return inf
