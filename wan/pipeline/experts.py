"""The one network in memory, and the ways to run it: as configured, safer, smaller."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from ..attention import Attention, plain, sdpa
from ..checkpoint import Checkpoint, detect_transformer_config
from ..experts import Stage, route
from ..guidance import cfg, needs_uncond
from ..lora import Resolved, apply_loras
from ..schedule import Schedule, Velocity
from ..sentinel import Rung
from ..shapes import token_grid
from ..solvers import evaluated
from ..transformer import EXACT, Memory, SelfAttention, Text, WanTransformer
from ..transformer.blocks import Branch, direct
from .request import Phase, Plan
from .source import Source, open_source

log = logging.getLogger(__name__)

FEW_TOKENS = 256
"""Tokens worked on at a time where memory ran out."""
HIDDEN_STATES = 4
"""What a forward holds beside the weights, roughly: 3.3, and what only an allocator knows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """How a network is computed.

    Attributes:
        dtype: of its matrix products.
        attention: the kernel.
        chunk: tokens worked on at a time, None for the network's own rule.
        memory: what a forward holds how.
        through: what the branches of blocks go through.
    """

    dtype: torch.dtype
    attention: Attention = sdpa
    chunk: int | None = None
    memory: Memory = EXACT
    through: Callable[[Branch], Branch] = direct


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where the experts come from, by ``high`` and ``low``.

    Attributes:
        experts: their files.
        loras: their LoRAs with strengths.
        device: where they run.
        stream: when their blocks are read as they run, see :data:`~.source.STREAM`.
    """

    experts: Mapping[str, Checkpoint]
    loras: Mapping[str, Sequence[tuple[Resolved, float]]]
    device: torch.device
    stream: str


class Networks:
    """The experts of one run, one of them in memory; asking for another lets it go first.

    Use it in a ``with`` block: files may be read in the background until then.
    """

    def __init__(self, weights: Weights, plan: Plan, contexts: tuple[Tensor, Tensor]) -> None:
        """``contexts`` (1, 512, text_dim): of the prompt and the negative prompt."""
        self._weights, self._plan, self._contexts = weights, plan, contexts
        self._held: tuple[str, torch.dtype, WanTransformer] | None = None
        self._strength: float | None = None
        self._texts: dict[int, Text] = {}
        self._source: Source | None = None
        self._course = Course(plan)

    def __enter__(self) -> Networks:
        return self

    def __exit__(self, *_: object) -> None:
        self._held = None
        if self._source is not None:
            self._source.close()

    def velocity(self, compute: Compute) -> Velocity:
        """A new velocity over all phases of the plan, guidance included."""
        schedule = self._plan.schedule
        stages = [
            Stage(
                name=spec.name,
                boundary=spec.boundary,
                velocity=self._guided(phase, compute, schedule),
            )
            for phase, spec in zip(self._plan.phases, self._plan.run.stages, strict=True)
        ]
        return route(stages, schedule)

    def ladder(self, compute: Compute) -> list[Rung]:
        """Safer ways than ``compute``: without fused attention, then in float32."""
        slow = replace(compute, attention=plain, through=direct)
        rungs = [Rung(name="plain attention", build=lambda: self.velocity(slow))]
        if compute.dtype != torch.float32:
            exact = replace(slow, dtype=torch.float32)
            rungs.append(Rung(name="float32", build=lambda: self.velocity(exact)))
        return rungs

    def relief(self, compute: Compute) -> list[Rung]:
        """Smaller ways than ``compute``: memory tidied up, fewer tokens at a time, other memory designs."""

        def tidied() -> Velocity:
            gc.collect()
            if self._weights.device.type == "cuda":
                torch.cuda.empty_cache()
            return self.velocity(compute)

        def rung(name: str, smaller: Compute) -> Rung:
            return Rung(name=name, build=lambda: self.velocity(smaller))

        return [
            Rung(name="memory tidied up", build=tidied),
            rung(f"{FEW_TOKENS} tokens at a time", replace(compute, chunk=FEW_TOKENS)),
            *(
                rung(design.told, replace(compute, memory=design))
                for design in compute.memory.smaller(self._weights.device)
            ),
        ]

    def _guided(self, phase: Phase, compute: Compute, schedule: Schedule) -> Velocity:
        positive, negative = self._contexts

        def velocity(x: Tensor, sigma: float) -> Tensor:
            source = self._source = self._source or self._open(compute)
            model = self._expert(source, phase, compute)
            timestep = torch.full((x.shape[0],), schedule.timestep(sigma), device=x.device)
            seen, scale = x.to(model.dtype), phase.guidance.at(sigma)
            guided, following = needs_uncond(scale), self._course.after(sigma)
            source.expect(phase.expert if guided else following)
            cond: Tensor = model(seen, timestep, self._read(model, positive))
            if not guided:
                return cond
            source.expect(following)
            return cfg(cond, model(seen, timestep, self._read(model, negative)), scale)

        return velocity

    def _read(self, model: WanTransformer, context: Tensor) -> Text:
        """A prompt as the expert at hand reads it, once for all steps."""
        if id(context) not in self._texts:
            self._texts[id(context)] = model.read(context, model.dtype)
        return self._texts[id(context)]

    def _open(self, compute: Compute) -> Source:
        """Where the experts come from, chosen by the memory that is free now."""
        given, shape = self._weights, self._plan.shape
        dim = max(detect_transformer_config(expert).dim for expert in given.experts.values())
        hidden = token_grid(*shape[1:]).tokens * dim * compute.dtype.itemsize
        return open_source(
            given.experts, given.device, stream=given.stream, working=HIDDEN_STATES * hidden
        )

    def _expert(self, source: Source, phase: Phase, compute: Compute) -> WanTransformer:
        if self._held is None or self._held[:2] != (phase.expert, compute.dtype):
            self._held = self._strength = None
            self._texts.clear()
            log.info("reading %s", self._weights.experts[phase.expert].path)
            model = source.load(phase.expert, compute.dtype)
            self._held = phase.expert, compute.dtype, model
        model = self._held[2]
        if self._strength != phase.loras:
            used = [
                (lora, strength * phase.loras)
                for lora, strength in self._weights.loras[phase.expert]
            ]
            apply_loras(model, used if phase.loras else ())
            self._texts.clear()
            self._strength = phase.loras
        _set_compute(model, compute)
        return model


def _set_compute(model: WanTransformer, compute: Compute) -> None:
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attention = compute.attention
    model.chunk, model.memory, model.through = compute.chunk, compute.memory, compute.through


class Course:
    """Which expert each evaluation of a run needs, in order."""

    def __init__(self, plan: Plan) -> None:
        steps, sigmas = range(plan.schedule.steps), plan.schedule.sigmas
        self._levels = [level for step in steps for level in evaluated(plan.solver, sigmas, step)]
        owners = accumulate((plan.run.stage_of(level) for level in self._levels), max)
        self._experts: list[str | None] = [plan.phases[index].expert for index in owners]
        self._at = 0

    def after(self, sigma: float) -> str | None:
        """The expert of the evaluation after this one at ``sigma``; None where nothing is foretold.

        A level may come twice, and a step that is done again goes back to an earlier one.
        """
        begin = self._at if sigma in self._levels[self._at :] else 0
        if sigma not in self._levels:
            return None
        self._at = self._levels.index(sigma, begin) + 1
        return [*self._experts, None][self._at]
