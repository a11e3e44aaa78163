"""LoRAs of every published dialect: read, resolved on an expert, measured, applied."""

from __future__ import annotations

from .apply import apply_loras, parameter_shapes
from .card import is_lora, lora_card
from .deltas import Delta, Diff, DoRA, LoHa, LoKr, LowRank, Set
from .file import ANY, LoraFile, Scaling, Section, read_lora
from .naming import exact_partner, find_partner, lora_role, spoken_role
from .report import RelativeNorm, coverage, relative_norm, scaling
from .resolve import Resolved, Unused, resolve
from .write import DIALECTS, Renamed, rename

__all__ = [
    "ANY",
    "DIALECTS",
    "Delta",
    "Diff",
    "DoRA",
    "LoHa",
    "LoKr",
    "LoraFile",
    "LowRank",
    "RelativeNorm",
    "Renamed",
    "Resolved",
    "Scaling",
    "Section",
    "Set",
    "Unused",
    "apply_loras",
    "coverage",
    "exact_partner",
    "find_partner",
    "is_lora",
    "lora_card",
    "lora_role",
    "parameter_shapes",
    "read_lora",
    "relative_norm",
    "rename",
    "resolve",
    "scaling",
    "spoken_role",
]
