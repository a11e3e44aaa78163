"""How much memory a device has for one process."""

from __future__ import annotations

import os
import sys

import torch

RESERVED = 0.1
"""Part of a device that others have: the system, a display, the CUDA context, an allocator's gaps."""


def device_bytes(device: torch.device) -> int:
    """Memory of a whole device less what others have of it: the same at each call, whatever is free.

    ``sys.maxsize`` where nobody tells.
    """
    if device.type == "cuda":
        total: int = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:  # Windows does not tell without more
        return sys.maxsize
    return int((1 - RESERVED) * total)
