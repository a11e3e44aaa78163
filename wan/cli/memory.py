"""What a forward holds how, as the command line names it."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace

from ..checkpoint import detect_transformer_config
from ..cost import AUTO, CHOICES, Expert, choose_design, device_bytes, held_weights, step_bytes
from ..pipeline import Pipeline, Plan
from ..shapes import token_grid
from ..transformer import Memory

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
    config = detect_transformer_config(pipeline.high)
    held = [held_weights(expert, pipeline.dtype) for expert in pipeline.experts.values()]
    stored = held[0].dtype

    def needed(memory: Memory) -> int:
        expert = Expert(
            config=config, dtype=pipeline.dtype, device=pipeline.device.type,
            stored=stored, memory=memory,
        )  # fmt: skip
        return step_bytes(expert, plan.shape, solver=plan.solver).peak

    weights = max(weights.nbytes for weights in held)
    if pipeline.stream != "never":  # two blocks are there, and what is outside of all
        weights = 3 * weights // (config.num_layers + 1)
    room = device_bytes(pipeline.device) - weights
    hidden = token_grid(*plan.shape[1:]).tokens * config.dim * pipeline.dtype.itemsize
    if asked == AUTO and PLENTY * hidden <= room:
        return pipeline
    choice = choose_design(asked, device=pipeline.device, room=room, needed=needed)
    if choice.note:
        log.warning("%s", choice.note)
    return replace(pipeline, memory=choice.memory)
