"""Runs that are never lost: their state on disk after every step, found again by what determines them."""

from .files import LATENTS, STATE, UNSCALED, RunState, read_state, write_latents, write_state
from .keeper import Keeper
from .key import run_key, tensor_digest
from .store import LIMIT, RunKeys, Store

__all__ = [
    "LATENTS",
    "LIMIT",
    "STATE",
    "UNSCALED",
    "Keeper",
    "RunKeys",
    "RunState",
    "Store",
    "read_state",
    "run_key",
    "tensor_digest",
    "write_latents",
    "write_state",
]
