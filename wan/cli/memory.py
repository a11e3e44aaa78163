"""What a forward holds how, as the command line names it."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

import torch

from ..checkpoint import detect_transformer_config
from ..cost import (
    AUTO,
    CHOICES,
    Choice,
    Expert,
    Networks,
    choose_design,
    device_bytes,
    held_weights,
    step_bytes,
)
from ..pipeline import Pipeline, Plan
from ..shapes import LatentShape, token_grid
from ..transformer import EXACT, Memory

log = logging.getLogger(__name__)

PLENTY = 100
"""Hidden states that no forward comes near: where they fit, nothing needs to be traced."""


def add_memory(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--memory``."""
    parser.add_argument(
        "--memory", choices=CHOICES, default=AUTO,
        help="what a forward holds: exact is three hidden states; int8 has keys and values in 8 bits, "
        "which changes the numbers a little, host the hidden state in main memory, which takes time: "
        "two, and one with both. auto (default): exact, unless the whole device is too small for it",
    )  # fmt: skip


def with_memory(pipeline: Pipeline, plan: Plan, asked: str) -> Pipeline:
    """``pipeline`` with the design ``asked`` for, or the first that fits its device; the log says which."""
    networks = Networks(
        transformer=detect_transformer_config(pipeline.high),
        dtype=pipeline.dtype,
        device=pipeline.device.type,
        experts=tuple(held_weights(e, pipeline.dtype) for e in pipeline.experts.values()),
    )
    streamed = pipeline.stream != "never"
    choice = choose_memory(
        asked, networks, pipeline.device, plan.shape, solver=plan.solver, streamed=streamed
    )
    if choice.note:
        log.warning("%s", choice.note)
    return replace(pipeline, memory=choice.memory)


def choose_memory(
    asked: str,
    networks: Networks,
    device: torch.device,
    shape: LatentShape,
    *,
    solver: str,
    streamed: bool,
) -> Choice:
    """The design of a run over one clip of ``shape`` on ``device``, whose blocks may be ``streamed``."""

    def needed(memory: Memory) -> int:
        expert = Expert(
            config=networks.transformer, dtype=networks.dtype, device=networks.device,
            stored=networks.experts[0].dtype, memory=memory,
        )  # fmt: skip
        return step_bytes(expert, shape, solver=solver).peak

    weights = max(weights.nbytes for weights in networks.experts)
    room = max(0, device_bytes(device) - (streamed_bytes(networks) if streamed else weights))
    hidden = token_grid(*shape[1:]).tokens * networks.transformer.dim * networks.dtype.itemsize
    if asked == AUTO and PLENTY * hidden <= room:
        return Choice(memory=EXACT)
    return choose_design(asked, device=device, room=room, needed=needed)


def streamed_bytes(networks: Networks) -> int:
    """About what is there of an expert whose blocks are read as they run: two, and what is outside of all."""
    largest = max(weights.nbytes for weights in networks.experts)
    return 3 * largest // (networks.transformer.num_layers + 1)
