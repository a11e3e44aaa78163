"""Reading a LoRA file: which experts it speaks to, how it is scaled, what it says of itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path

from torch import Tensor

from ..files import TensorInfo, read_header, read_tensors, shown
from ..keys.roles import HIGH, LOW, ROLES, release_of
from .dialects import MARKERS, Spelled, parse, role_of_key
from .naming import lora_base, lora_role

ANY = "any"
_PEFT_CONFIG = "adapter_config.json"
_CONFIG_LIMIT = 1024 * 1024
_EXPERT = {HIGH: "transformer.", ANY: "transformer.", LOW: "transformer_2."}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaling:
    """How a low-rank delta without its own ``alpha`` is scaled, as PEFT's configuration says."""

    alpha: float | None = None
    alphas: Mapping[str, float]
    """Of single modules, by the end of their name."""
    stabilised: bool = False
    """Rank-stabilised LoRA: ``alpha / sqrt(rank)`` instead of ``alpha / rank``."""

    def factor(self, module: str, rank: int, alpha: float | None) -> float:
        """The scale of one module; no alpha anywhere counts as ``alpha = rank``."""
        if alpha is None:
            own = (a for name, a in self.alphas.items() if f".{module}".endswith(f".{name}"))
            alpha = next(own, self.alpha)
        if alpha is None:
            alpha = float(rank)
        return float(alpha / (rank**0.5 if self.stabilised else rank))


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The tensors of a file that belong to one expert, by stored key."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    scaling: Scaling
    dialect: str
    """Whose key prefix most of them have: ``ComfyUI``, ``kohya``, ``diffusers``, ``PEFT``, ``LyCORIS``,
    ``DiffSynth``, or ``bare`` for none."""

    def read(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Some of them, mapped from disk."""
        return read_tensors(self.path, keys)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """A LoRA file whose header was read.

    Attributes:
        path: the file.
        metadata: of its header.
        sections: ``any`` (the keys do not say which expert), or ``high_noise`` and ``low_noise`` or one of them.
    """

    path: Path
    metadata: Mapping[str, str]
    sections: Mapping[str, Section]

    @property
    def role(self) -> str | None:
        """The expert that the file is for by its keys, metadata or name; None if for both or unknown."""
        told = set(self.sections) - {ANY}
        if told:
            return told.pop() if len(self.sections) == 1 else None
        return lora_role(self.path, self.metadata)

    @property
    def base(self) -> str | None:
        """``Wan2.1`` or ``Wan2.2`` as far as keys, metadata or name tell."""
        image = any(
            mark in key
            for section in self.sections.values()
            for key in section.tensors
            for mark in ("k_img", "add_k_proj", "img_emb", "image_embedder")
        )
        if not image and set(self.sections) - {ANY}:
            return "Wan2.2"  # only this release has two experts
        if named := release_of(self.path.name):
            return named
        if not image and self.role:
            return "Wan2.2"
        return lora_base(self.path, self.metadata) or ("Wan2.1" if image else None)

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts it acts on unless someone says otherwise.

        Those its keys or its name speak of. A Wan2.1 LoRA acts on low noise alone, as its users do:
        it knows nothing of a division of labour, and layout is not its trade. All others act on both.
        """
        if told := tuple(role for role in ROLES if role in self.sections):
            return told
        if self.role:
            return (self.role,)
        return (LOW,) if self.base == "Wan2.1" else ROLES

    def section(self, role: str) -> Section | None:
        """What the file holds for one expert; None if it is for the other one by its keys."""
        return self.sections.get(role, self.sections.get(ANY))


def read_lora(path: str | Path) -> LoraFile:
    """Read the header of a LoRA.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no weight file, damaged, or not a LoRA.
    """
    path = Path(path)
    header = read_header(path)
    spelled = {key: parse(key) for key in header.tensors if key not in MARKERS}
    if not any(spelled.values()):
        first = next(iter(header.tensors), "nothing")
        raise ValueError(
            f"{shown(path)} is not a LoRA (it holds '{shown(first)}', ...); choose a LoRA file"
        )
    roles = {key: role_of_key(key) for key in spelled}
    named = {role for role in roles.values() if role}
    # Where one file has both experts, or strays beside one, the keys without a number are the first's.
    unnamed = (HIGH if named != {LOW} or _speaks(spelled, roles) else LOW) if named else ANY
    sections: dict[str, list[str]] = {}
    for key, role in roles.items():
        sections.setdefault(role or unnamed, []).append(key)
    config = _peft_config(path, header.metadata)
    return LoraFile(
        path=path,
        metadata=header.metadata,
        sections={
            name: Section(
                path=path,
                tensors={key: header.tensors[key] for key in keys},
                scaling=_scaling(path, config, name),
                dialect=_dialect([found for key in keys if (found := spelled[key])]),
            )
            for name, keys in sections.items()
        },
    )


def _speaks(spelled: Mapping[str, Spelled | None], roles: Mapping[str, str | None]) -> bool:
    """Whether a LoRA's tensor is among those that name no expert."""
    return any(found and not roles[key] for key, found in spelled.items())


def _dialect(spelled: Sequence[Spelled]) -> str:
    return Counter(found.dialect for found in spelled).most_common(1)[0][0] if spelled else "bare"


def _peft_config(path: Path, metadata: Mapping[str, str]) -> dict[str, object]:
    """PEFT's configuration from the header, where diffusers writes it, or from the file beside."""
    beside = path.parent / _PEFT_CONFIG
    told = metadata.get("lora_adapter_metadata")
    if told is None and path.stem.startswith("adapter_model") and beside.is_file():
        told = _text(beside)
    try:
        config = json.loads(told or "{}")
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise _damaged_config(path)
    if str(config.get("peft_type", "LORA")).upper() != "LORA":
        raise ValueError(
            f"{shown(path)} is an adapter of PEFT's type {shown(config['peft_type'])}, of which only LORA is read; "
            "convert it with the tool that trained it"
        )
    if str(metadata.get("use_rslora", "")).lower() == "true":
        config.setdefault("use_rslora", True)
    return config


def _text(config: Path) -> str:
    if config.stat().st_size > _CONFIG_LIMIT:
        raise ValueError(
            f"{shown(config)} is larger than 1 MB, which no PEFT configuration is; download it again"
        )
    try:
        return config.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{shown(config)} is not UTF-8 text; download it again") from None


def _damaged_config(path: Path) -> ValueError:
    return ValueError(f"{shown(path)} has a damaged PEFT configuration; download it again")


def _scaling(path: Path, config: Mapping[str, object], name: str) -> Scaling:
    prefix = _EXPERT[name]

    def told(field: str) -> object:
        return config.get(f"{prefix}{field}", config.get(field))

    alphas, stabilised = told("alpha_pattern"), told("use_rslora")
    if not isinstance(alphas, dict | None):
        raise _wrong(path, "alpha_pattern", alphas, "a table of numbers")
    if not isinstance(stabilised, bool | None):
        raise _wrong(path, "use_rslora", stabilised, "true or false")
    numbers = {str(module): _number(path, v) for module, v in (alphas or {}).items()}
    return Scaling(
        alpha=_number(path, told("lora_alpha")),
        alphas={module: number for module, number in numbers.items() if number is not None},
        stabilised=stabilised is True,
    )


def _number(path: Path, value: object) -> float | None:
    """A number, also as text; None where PEFT wrote null."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _wrong(path, "an alpha", value, "a number")
    try:
        number = float(value)
    except OverflowError:
        number = inf
    except ValueError:
        raise _wrong(path, "an alpha", value, "a number") from None
    if not isfinite(number):
        raise _damaged_config(path)
    return number


def _wrong(path: Path, field: str, value: object, wanted: str) -> ValueError:
    return ValueError(
        f"{shown(path)} has a PEFT configuration in which {field} is {shown(json.dumps(value))} where "
        f"{wanted} belongs; correct it or download it again"
    )
