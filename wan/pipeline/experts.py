"""The one network in memory, and the ways to run it: as configured, safer, smaller."""

from __future__ import annotations

import gc
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..attention import Attention, plain, sdpa
from ..checkpoint import load_transformer, place
from ..experts import Stage, route
from ..guidance import cfg, needs_uncond
from ..lora import Resolved, apply_loras
from ..schedule import Schedule, Velocity
from ..sentinel import Rung
from ..transformer import Block, SelfAttention, WanTransformer
from .request import Phase, Plan

log = logging.getLogger(__name__)

SMALL_PARTS = 16
"""Parts of the feed-forward where memory ran out: its hidden states are the largest of a block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """How a network is computed.

    Attributes:
        dtype: of its matrix products.
        attention: the kernel.
        parts: into how many runs of tokens the feed-forward is divided.
    """

    dtype: torch.dtype
    attention: Attention = sdpa
    parts: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where the experts come from: their files and their LoRAs with strengths, by ``high`` and ``low``."""

    files: Mapping[str, Path]
    loras: Mapping[str, Sequence[tuple[Resolved, float]]]
    device: torch.device


class Networks:
    """The experts of one run, one of them in memory; asking for another lets it go first."""

    def __init__(self, weights: Weights, plan: Plan, contexts: tuple[Tensor, Tensor]) -> None:
        """``contexts`` (1, 512, text_dim): of the prompt and the negative prompt."""
        self._weights, self._plan, self._contexts = weights, plan, contexts
        self._held: tuple[str, torch.dtype, WanTransformer] | None = None
        self._strength: float | None = None

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
        slow = replace(compute, attention=plain)
        rungs = [Rung(name="plain attention", build=lambda: self.velocity(slow))]
        if compute.dtype != torch.float32:
            exact = replace(slow, dtype=torch.float32)
            rungs.append(Rung(name="float32", build=lambda: self.velocity(exact)))
        return rungs

    def relief(self, compute: Compute) -> list[Rung]:
        """Smaller ways than ``compute``: with memory tidied up, then the feed-forward in parts."""

        def tidied() -> Velocity:
            gc.collect()
            if self._weights.device.type == "cuda":
                torch.cuda.empty_cache()
            return self.velocity(compute)

        small = replace(compute, parts=SMALL_PARTS)
        return [
            Rung(name="memory tidied up", build=tidied),
            Rung(
                name=f"the feed-forward in {SMALL_PARTS} parts", build=lambda: self.velocity(small)
            ),
        ]

    def _guided(self, phase: Phase, compute: Compute, schedule: Schedule) -> Velocity:
        positive, negative = self._contexts

        def velocity(x: Tensor, sigma: float) -> Tensor:
            model = self._expert(phase, compute)
            timestep = torch.full((x.shape[0],), schedule.timestep(sigma), device=x.device)
            seen, scale = x.to(model.dtype), phase.guidance.at(sigma)
            cond: Tensor = model(seen, timestep, positive)
            if not needs_uncond(scale):
                return cond
            return cfg(cond, model(seen, timestep, negative), scale)

        return velocity

    def _expert(self, phase: Phase, compute: Compute) -> WanTransformer:
        if self._held is None or self._held[:2] != (phase.expert, compute.dtype):
            self._held = self._strength = None
            path = self._weights.files[phase.expert]
            log.info("reading %s", path)
            model = load_transformer(path, dtype=compute.dtype)
            place(model, self._weights.device, compute.dtype)
            self._held = phase.expert, compute.dtype, model
        model = self._held[2]
        if self._strength != phase.loras:
            used = [
                (lora, strength * phase.loras)
                for lora, strength in self._weights.loras[phase.expert]
            ]
            _set_parts(model, 1)  # patches are found by the names of the official layers
            apply_loras(model, used if phase.loras else ())
            self._strength = phase.loras
        _set_compute(model, compute)
        return model


def _set_compute(model: WanTransformer, compute: Compute) -> None:
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attention = compute.attention
    _set_parts(model, compute.parts)


def _set_parts(model: WanTransformer, parts: int) -> None:
    for block in model.blocks:
        assert isinstance(block, Block)
        whole = block.ffn.whole if isinstance(block.ffn, _InParts) else block.ffn
        block.ffn = whole if parts == 1 else _InParts(whole, parts)  # type: ignore[assignment]


class _InParts(nn.Module):
    """A feed-forward over some tokens after the others; they do not know of each other."""

    def __init__(self, whole: nn.Module, parts: int) -> None:
        super().__init__()
        self.whole, self.parts = whole, parts

    def forward(self, x: Tensor) -> Tensor:
        """``(B, L, D)`` to ``(B, L, D)``."""
        return torch.cat([self.whole(part) for part in x.chunk(self.parts, dim=1)], dim=1)
