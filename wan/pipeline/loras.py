"""LoRA files and the expert each of them acts on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import torch

from ..checkpoint import PARTS, Checkpoint, detect_transformer_config
from ..files import shown
from ..keys.roles import HIGH, LOW
from ..lora import Resolved, coverage, parameter_shapes, read_lora, resolve
from ..transformer import WanTransformer

log = logging.getLogger(__name__)

ROLE_OF = {"high": HIGH, "low": LOW}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraUse:
    """A LoRA file to run with.

    Attributes:
        path: the file.
        strength: any real number; 1 is what it was trained for.
        part: ``high`` or ``low``; None lets the file say, see :attr:`~.lora.LoraFile.experts`.
    """

    path: Path
    strength: float = 1.0
    part: str | None = None


def resolve_loras(
    uses: Sequence[LoraUse], part: str, expert: Checkpoint, *, allow_mismatch: bool
) -> list[tuple[Resolved, float]]:
    """The LoRAs that act on one expert, with their strengths; the log says what each covers.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is damaged, of another network, or for the other expert.
    """
    role = ROLE_OF[part]
    config = detect_transformer_config(expert)
    names = parameter_shapes(WanTransformer(config, device=torch.device("meta")))
    found: list[tuple[Resolved, float]] = []
    for use in uses:
        if not isfinite(use.strength):
            raise ValueError(
                f"the strength of {shown(use.path.name)} is {use.strength}; use a number"
            )
        file, name = read_lora(use.path), shown(use.path.name)
        if use.part is None and role not in file.experts:
            why = "it is made for Wan2.1" if file.base == "Wan2.1" else "it is for the other one"
            log.warning("%s leaves the %s as it is: %s", name, PARTS[part], why)
            continue
        if use.part not in (None, part):
            continue
        section = file.section(role)
        if section is None or (file.role not in (None, role) and not allow_mismatch):
            raise ValueError(
                f"{name} is a LoRA for the other expert, not the {PARTS[part]}; "
                "give it to that one, or allow a mismatch"
            )
        if file.role not in (None, role):
            log.warning("%s is made for the other expert than the %s", name, PARTS[part])
        resolved = resolve(section, names)
        log.warning("%s on the %s: %s", name, PARTS[part], coverage(resolved))
        found.append((resolved, use.strength))
    return found
