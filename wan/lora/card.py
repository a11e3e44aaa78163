"""What a LoRA file is, without an expert at hand."""

from __future__ import annotations

from pathlib import Path

from ..files import read_header
from ..keys.roles import HIGH, LOW
from ..keys.transformer import known_keys
from .dialects import parse
from .file import ANY, LoraFile, read_lora
from .report import coverage, scaling
from .resolve import Resolved, resolve

BLOCKS = 64
"""More than any Wan network has."""
_EXPERTS = {HIGH: "the high-noise expert", LOW: "the low-noise expert"}


def is_lora(path: Path) -> bool:
    """Whether some key of a weight file is a LoRA's; raises as :func:`wan.files.read_header` does."""
    return any(parse(key) for key in read_header(path).tensors)


def lora_card(path: Path) -> str:
    """What a LoRA file is and which names of a Wan transformer it holds, one fact a line.

    Raises:
        OSError: it cannot be read.
        ValueError: damaged, or not a LoRA for a Wan transformer.
    """
    file = read_lora(path)
    size = path.stat().st_size / 1e6
    lines = [f"{path.name}: LoRA{_made_for(file)}, {size:.1f} MB"]
    for name, section in file.sections.items():
        resolved = resolve(section, dict.fromkeys(known_keys(BLOCKS)))
        whose = "" if name == ANY else f" for {_EXPERTS[name]}"
        lines.append(f"  {section.dialect} keys{whose}, {scaling(resolved)}, {_known(resolved)}")
    lines.append(f"  acts on: {' and '.join(_EXPERTS[role] for role in file.experts)}")
    return "\n".join(lines)


def _known(resolved: Resolved) -> str:
    """Coverage as far as names tell; whether the shapes fit only an expert can say."""
    return coverage(resolved).replace(" modules", " module names known", 1)


def _made_for(file: LoraFile) -> str:
    return f" for {file.base}" if file.base else " (no name or header says for which release)"
