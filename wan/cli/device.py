"""Where networks run and how their weights come there, as the command line names it."""

from __future__ import annotations

import argparse

import torch

from ..pipeline.source import STREAM


def add_device(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """``--device`` and ``--stream``."""
    parser.add_argument("--device", help="torch device; default: cuda if there is one")
    parser.add_argument(
        "--stream", choices=STREAM, default=STREAM[0],
        help="read the blocks of an expert from disk as they run, two at a time; auto: if it does not "
        "fit the free memory. The result is the same",
    )  # fmt: skip


def torch_device(name: str | None) -> torch.device:
    """The device of ``--device``; None takes CUDA where there is one, else the CPU.

    Raises:
        ValueError: it cannot hold numbers here; told before weights are read.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # torch raises either, by backend
        raise ValueError(f"device={name!r} cannot be used here; use cpu or cuda") from error
    return torch.device(name)
