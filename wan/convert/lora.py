"""A LoRA from one dialect to another."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..files import shown
from ..files.write import Entry, write_safetensors
from ..lora import ANY, LoraFile, read_lora, rename
from ..video import whole_file


def convert_lora(
    source: Path, out: Path, *, dialect: str, dtype: torch.dtype | None = None
) -> list[Path]:
    """Write a LoRA in another dialect; a file for both experts becomes one, or two where one cannot be.

    Args:
        source: a LoRA of any dialect.
        out: the file to make; two are named after it, with ``_high_noise`` and ``_low_noise``.
        dialect: a key of ``DIALECTS``.
        dtype: of the tensors; None keeps theirs.

    Raises:
        ValueError: unknown dialect, not a LoRA for Wan, or a change the dialect has no words for.
        OSError: the place cannot be written, or something is there already.
    """
    file = read_lora(source)
    both = len(file.sections) > 1
    written: dict[Path, dict[str, Tensor]] = {}
    roles: dict[Path, str | None] = {}
    for name, section in file.sections.items():
        role = file.role if name == ANY else name
        renamed = rename(section, dialect, role)
        if renamed.left:
            lost, reason = renamed.left[0]
            raise ValueError(
                f"{shown(source.name)} holds {len(renamed.left)} changes that {dialect} would lose ({shown(lost)}: "
                f"{reason}); choose another dialect"
            )
        own = out.with_name(f"{out.stem}_{name}{out.suffix}")
        apart = both and dialect != "diffusers"  # its keys alone say which expert they are for
        target = own if apart else out
        roles[target] = name if apart else file.role
        written.setdefault(target, {}).update(renamed.tensors)
    for path in written:
        if path.exists():
            raise FileExistsError(f"{shown(path)} exists already; choose another name or remove it")
    for path, tensors in written.items():
        entries = {
            name: Entry(
                shape=tuple(tensor.shape), dtype=dtype or tensor.dtype, make=partial(_same, tensor)
            )
            for name, tensor in tensors.items()
        }
        with whole_file(path) as part:
            write_safetensors(part, entries, _lora_metadata(file, roles[path]))
    return list(written)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _lora_metadata(file: LoraFile, role: str | None) -> dict[str, str]:
    """What a renamed LoRA must still say of itself: training facts, and which expert it is for."""
    kept = {k: v for k, v in file.metadata.items() if k.startswith(("ss_", "modelspec.", "wan_"))}
    return kept | ({"wan_role": role} if role else {})
