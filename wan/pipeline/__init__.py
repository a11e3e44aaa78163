"""The reference composition: prompt -> context -> one trajectory over two experts -> frames.

Everything that settings, shapes and file headers can tell is checked before a weight is read. One
network is in memory at a time: the text encoder leaves before the high-noise expert comes, and the
low-noise expert is read at the switch, when the other one has left.
"""

from .decoding import decode_frames
from .kernels import Kernels
from .loras import LoraUse
from .request import AUTO, Phase, Plan, Request, make_plan
from .system import Keep, Pipeline

__all__ = [
    "AUTO",
    "Keep",
    "Kernels",
    "LoraUse",
    "Phase",
    "Pipeline",
    "Plan",
    "Request",
    "decode_frames",
    "make_plan",
]
