"""Whose kernels run the experts, as the command line names them."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..backends import BACKENDS
from ..compiled import can_compile
from ..pipeline import Kernels, Pipeline


def add_kernels(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--attention`` and ``--compile``."""
    parser.add_argument(
        "--attention", choices=BACKENDS, default=BACKENDS[0],
        help="kernel of attention: sdpa (default) is PyTorch's choice, cudnn its cuDNN first; flash "
        "(flash-attn) and sage (SageAttention, which rounds) where installed and right in a test at start",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action="store_true",
        help="compile the blocks with torch.compile, once for both experts and all sizes: the first step "
        "takes minutes; results differ in the last digits",
    )  # fmt: skip


def with_kernels(
    pipeline: Pipeline, given: argparse.Namespace, *, compiling: bool = False
) -> Pipeline:
    """``pipeline`` with the kernels asked for, compiled also where ``compiling``.

    Raises:
        ValueError: they do not work; no weight is read before.
    """
    compiled = (given.compile or compiling) and can_compile(pipeline.device.type)
    kernels = Kernels(attention=given.attention, compiled=compiled)
    kernels.open(pipeline.device, pipeline.dtype)
    return replace(pipeline, kernels=kernels)
