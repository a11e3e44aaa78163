"""Which LoRA acts on which expert: what the user chose, completed by what the files say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ...wan.files.paths import shown
from ...wan.keys.roles import HIGH, LOW, ROLES
from ...wan.keys.transformer import known_keys
from ...wan.lora import ANY, LoraFile, Section, exact_partner, find_partner, read_lora, spoken_role
from ...wan.lora.card import BLOCKS
from ...wan.lora.dialects import module_index, parse
from . import files

AUTO, NONE = "auto", "none"
EXPERTS = {HIGH: "high-noise expert", LOW: "low-noise expert"}
OTHER = {HIGH: LOW, LOW: HIGH}


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A LoRA for one expert."""

    name: str
    """As the list spells it."""
    section: Section
    """What the file holds for this expert."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What acts on each expert, and what should be said about it."""

    by_role: Mapping[str, Choice]
    notes: tuple[str, ...]


def choose(high: str, low: str, *, allow_mismatch: bool = False) -> Choices:
    """Open the chosen files (headers only) and find what ``auto`` stands for.

    ``auto`` is the partner by name of a file for one expert, and the chosen file itself where it is for
    both or does not say and has no partner; a Wan2.1 LoRA stays on low noise.

    Args:
        high: a listed name, ``auto`` or ``none``.
        low: the same for the other expert.
        allow_mismatch: use a file for the expert it is not made for.

    Raises:
        ValueError: nothing chosen, not in the list, no LoRA or one of another network, damaged, or made
            for the other expert.
        OSError: a file cannot be read.
    """
    given = {HIGH: high, LOW: low}
    chosen = {role: (name, _open(name)) for role, name in given.items() if name not in (AUTO, NONE)}
    if not chosen:
        raise ValueError("no LoRA is chosen; choose a file for at least one of the experts")
    strangers = [role for role, (name, file) in chosen.items() if not _is_for(name, file, role)]
    if strangers and not allow_mismatch:
        raise ValueError(_misplaced(strangers, chosen))
    notes = [
        f"{shown(chosen[role][0])} is made for the {EXPERTS[OTHER[role]]}" for role in strangers
    ]
    for role in ROLES:
        if given[role] != AUTO:
            continue
        name, file = chosen[OTHER[role]]
        if role in file.experts and _role(name, file) in (None, role):
            chosen[role] = name, file
            notes += _undecided(name, file)
            continue
        partner, told = _partner(name, role)
        if partner:
            chosen[role] = partner
        notes += told or ([] if partner else [_alone(name, file, role)])
    notes += [
        f"{shown(name)} is made for Wan2.1 and may disturb the layout, which the {EXPERTS[HIGH]} makes"
        for role, (name, file) in chosen.items()
        if role == HIGH and file.base == "Wan2.1"
    ]
    if len(chosen) == 1 and NONE in given.values():
        notes.append(f"only the {EXPERTS[next(iter(chosen))]} is changed")
    by_role = {
        role: Choice(name=name, section=_section(file, role))
        for role, (name, file) in chosen.items()
    }
    return Choices(by_role=by_role, notes=tuple(notes))


def _open(name: str) -> LoraFile:
    file = read_lora(files.find(files.LORAS, name))
    keys = [key for section in file.sections.values() for key in section.tensors]
    modules = {spelled.module for key in keys if (spelled := parse(key))}
    if not modules & _wan_modules():
        raise ValueError(
            f"{shown(name)} is a LoRA of another network (it holds '{shown(keys[0])}', ...); "
            "choose one made for Wan2.2 14B or Wan2.1 14B"
        )
    return file


@lru_cache(maxsize=1)
def _wan_modules() -> frozenset[str]:
    """Modules of any Wan network, in every spelling."""
    return frozenset(module_index(known_keys(BLOCKS)))


def _is_for(name: str, file: LoraFile, role: str) -> bool:
    return file.section(role) is not None and _role(name, file) in (None, role)


def _role(name: str, file: LoraFile) -> str | None:
    """The expert of a file; a name too unclear to be believed alone is clear beside its partner's."""
    if file.role or set(file.sections) != {ANY}:
        return file.role
    return spoken_role(Path(name)) if exact_partner(Path(name), _listed()) else None


def _listed() -> list[Path]:
    return [Path(name) for name in files.list_files(files.LORAS)]


def _undecided(name: str, file: LoraFile) -> list[str]:
    if file.role or set(file.sections) != {ANY}:
        return []
    return [f"{shown(name)} does not say which expert it is for, so both get it"]


def _section(file: LoraFile, role: str) -> Section:
    """Its tensors for ``role``; those for the other expert where it has no others."""
    return file.section(role) or file.sections[OTHER[role]]


def _misplaced(strangers: list[str], chosen: Mapping[str, tuple[str, LoraFile]]) -> str:
    name = chosen[strangers[0]][0]
    if len(strangers) == len(ROLES):
        return (
            f"the LoRAs are swapped: {shown(name)} is made for the {EXPERTS[OTHER[strangers[0]]]}; "
            "exchange the files, or turn on allow_mismatch"
        )
    return (
        f"{shown(name)} is a LoRA for the {EXPERTS[OTHER[strangers[0]]]}, given for the other one; "
        "choose its partner there, or turn on allow_mismatch"
    )


def _partner(name: str, role: str) -> tuple[tuple[str, LoraFile] | None, list[str]]:
    """The other half for ``role``, if there is a sound one, and what should be said about it."""
    listed = _listed()
    found = find_partner(Path(name), listed)
    if found is None:
        return None, []
    other = str(found)
    try:
        file = _open(other)
    except (ValueError, OSError) as error:
        only = f"so only the {EXPERTS[OTHER[role]]} is changed"
        return None, [f"the partner of {shown(name)} cannot be used, {only}: {error}"]
    if not _is_for(other, file, role):
        return None, []
    if exact_partner(Path(name), listed):
        return (other, file), []
    return (other, file), [
        f"{shown(other)} is taken for the partner of {shown(name)}, though their names differ in more "
        "than the expert; choose another file if it is not"
    ]


def _alone(name: str, file: LoraFile, role: str) -> str:
    if file.base == "Wan2.1":
        return (
            f"{shown(name)} is made for Wan2.1, so only the {EXPERTS[OTHER[role]]} is changed; "
            f"choose it for the {EXPERTS[role]} too to try it there"
        )
    return (
        f"{shown(name)} has no partner for the {EXPERTS[role]} in the loras folders, so only the "
        f"{EXPERTS[OTHER[role]]} is changed; choose a file or none"
    )
