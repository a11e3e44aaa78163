"""Where networks run, as the command line names it."""

from __future__ import annotations

import torch


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
