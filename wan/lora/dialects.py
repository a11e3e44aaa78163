"""The key dialects of LoRA files: a key is prefix, module and part; what modules are called.

A module is spelled with dots or underscores, in official or in diffusers' names, in any combination
with any prefix. Underscore names are looked up among those made from the real names, never split.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ..keys.roles import HIGH, LOW
from ..keys.transformer import diffusers_key

_PREFIXES = {
    "base_model.model.": "PEFT",
    "model.diffusion_model.": "ComfyUI",
    "diffusion_model.": "ComfyUI",
    "pipe.dit.": "DiffSynth",
    "dit.": "DiffSynth",
    "transformer_1.": "diffusers",
    "transformer_2.": "diffusers",
    "transformer.": "diffusers",
    "lora_unet__": "kohya",
    "lora_unet_": "kohya",
    "lycoris_": "LyCORIS",
}
_ROLES = {"transformer_1.": HIGH, "transformer_2.": LOW}
_UP = {"up": "up", "B": "up", "down": "down", "A": "down", "mid": "mid"}
_UPPER_BIAS = re.compile(r"(.+?)\.lora_(B)(?:\.(?!bias$)\w+)?\.bias")
_PARTS = [
    re.compile(
        r"(.+?)(?:\.lora_|_lora\.|\.lora\.|\.lora_linear_layer\.)(up|down|mid)(?:\.weight)?"
    ),
    re.compile(
        r"(.+?)\.lora_([AB])(?:\.(?!(?:weight|bias|scale_weight|weight_scale)$)\w+)?(?:\.weight)?"
    ),
    _UPPER_BIAS,
    re.compile(r"(.+?)\.(lora_magnitude_vector)(?:\.\w+)*"),
    re.compile(
        r"(.+)\.(alpha|dora_scale|diff|diff_b|diff_m|w_norm|b_norm|set_weight"
        r"|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    ),
]
_RENAMED = {"lora_magnitude_vector": "magnitude", "w_norm": "diff", "b_norm": "diff_b"}
_SCALE = re.compile(r"(.+)\.(?:scale_weight|weight_scale)")
MARKERS = frozenset({"scaled_fp8"})
"""Tensors that say how others are stored and are nothing by themselves."""


class Spelled(NamedTuple):
    """A key taken apart."""

    dialect: str
    """Who writes such prefixes; ``bare`` for none."""
    role: str | None
    """The expert the prefix names, if any."""
    name: str
    """Of the module as the file has it."""
    module: str
    """The same without prefix."""
    part: str
    """``up``, ``down``, ``mid``, ``up_bias``, ``alpha``, ``dora_scale``, ``diff`` ... as in :mod:`.resolve`."""


def parse(key: str) -> Spelled | None:
    """Take a key apart, or None if no LoRA tensor is called so."""
    for pattern in _PARTS:
        if match := pattern.fullmatch(key):
            part = _UP.get(match[2]) or _RENAMED.get(match[2], match[2])
            dialect, role, module = _strip(match[1])
            return Spelled(
                dialect, role, match[1], module, "up_bias" if match.re is _UPPER_BIAS else part
            )
    return None


def _strip(name: str) -> tuple[str, str | None, str]:
    dialect, role = "bare", None
    while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None):
        dialect = _PREFIXES[prefix] if dialect == "bare" else dialect
        role = role or _ROLES.get(prefix)
        name = name.removeprefix(prefix)
    return dialect, role, name


def role_of_key(key: str) -> str | None:
    """The expert that a key's prefix names, if any, whatever the tensor is."""
    return _strip(key)[1]


def scaled_key(key: str) -> tuple[str, str] | None:
    """The two possible keys of the fp8 tensor that ``key`` is the scale of, or None if it is no scale."""
    match = _SCALE.fullmatch(key)
    return (f"{match[1]}.weight", match[1]) if match else None


def module_index(names: Iterable[str]) -> dict[str, str]:
    """Every spelling of the modules and lone parameters of a network -> the official name.

    Args:
        names: official parameter names.
    """
    index: dict[str, str] = {}
    for name in names:
        module, _, leaf = name.rpartition(".")
        theirs = diffusers_key(name)
        spelled = {name: name, theirs or name: name}
        if leaf in ("weight", "bias"):
            spelled |= {module: module, (theirs or name).removesuffix(f".{leaf}"): module}
        else:
            spelled[module] = module  # for the delta of a block's modulation
        for spelling, official in spelled.items():
            index.setdefault(spelling, official)
            index.setdefault(spelling.replace(".", "_"), official)
    return index
