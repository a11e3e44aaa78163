"""What names and metadata say of a LoRA: its expert, its release, its partner file.

In the name of a checkpoint "high" speaks of noise; in that of a LoRA it may as well be a word of the
subject (high heels, low light, low poly). So it counts only where the name around it is technical.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from pathlib import Path

from ..files import SUFFIXES
from ..keys.roles import HIGH, LETTERS, LOW, ROLES, Word, lora_role_of, release_of, words

HIGH_FROM, LOW_TO = 800, 925
"""Timesteps around the experts' boundary (875, for image-to-video 900) that training ranges stop at."""
_SWAP = {"high": "low", "highnoise": "lownoise", "hinoise": "lonoise", "hn": "ln", "h": "l"}
_SWAP |= {low: high for high, low in _SWAP.items()}
_VARYING = re.compile(
    r"(?<![a-z0-9])(rank ?\d+|r\d+|dim ?\d+|fp\d+|bf\d+|e\dm\d\w*|e\d+|ep\d+|epoch ?\d+|0\d\d+|noise|model)"
    r"(?![a-z0-9])"
)
"""What may differ between the halves of a pair: rank, precision, how long each was trained."""
_SIMILAR = 0.7
_TITLES = ("ss_output_name", "modelspec.title", "name", "ss_sd_model_name")


def lora_role(path: Path, metadata: Mapping[str, str]) -> str | None:
    """``high_noise``, ``low_noise`` or None.

    From, in this order: ``wan_role``, the timesteps it was trained on, the file's name, the names in
    its metadata (its own and its base model's), the folder's name.
    """
    if (told := metadata.get("wan_role")) in ROLES:
        return told
    if role := _trained_on(metadata.get("modelspec.timestep_range", "")):
        return role
    titles = [metadata[key] for key in _TITLES if key in metadata]
    found = (role_in(name) for name in [path.name, *titles, path.parent.name])
    return next((role for role in found if role), None)


def _trained_on(timesteps: str) -> str | None:
    match = re.fullmatch(r"\s*(\d{1,4})\s*,\s*(\d{1,4})\s*", timesteps)
    if not match:
        return None
    first, last = int(match[1]), int(match[2])
    if first >= HIGH_FROM:
        return HIGH
    return LOW if last <= LOW_TO else None


def role_in(name: str) -> str | None:
    """The expert that a LoRA's or folder's name speaks of, or None; both is None too."""
    return lora_role_of(_bare(name))


def lora_base(path: Path, metadata: Mapping[str, str]) -> str | None:
    """``Wan2.1``, ``Wan2.2`` or None, as names and metadata tell."""
    for name in (path.name, metadata.get("ss_sd_model_name", ""), path.parent.name):
        if release := release_of(name):
            return release
    # Some trainers write "wan2.1" for both releases, so only the newer one is believed.
    versions = metadata.get("ss_base_model_version", ""), metadata.get("modelspec.architecture", "")
    return "Wan2.2" if "Wan2.2" in map(release_of, versions) else None


def _bare(name: str) -> str:
    return next((name[: -len(end)] for end in SUFFIXES if name.lower().endswith(end)), name)


def _speaks_of_noise(word: Word) -> bool:
    """Whether the word may stand for an expert: high, low, HN, LN, H or L."""
    return word.text in LETTERS if len(word.text) < 3 else word.text.lower() in _SWAP


def find_partner(path: Path, candidates: Iterable[Path]) -> Path | None:
    """The other half of a pair: the same name with high and low exchanged, or the one closest to it.

    Args:
        path: one half.
        candidates: files to choose from, spelled as ``path`` is (all absolute or all relative).

    Returns:
        None if no name fits, or if several fit equally well.
    """
    others = [other for other in candidates if other != path]
    exact = [other for other in others if _exchangeable(path, other) or _exchangeable(other, path)]
    if exact:
        return exact[0] if len(exact) == 1 else None
    role = _role_of(path)
    if role is None:
        return None
    opposite = [other for other in others if _role_of(other) not in (None, role)]
    scored = sorted(((_likeness(path, other), other) for other in opposite), key=lambda s: s[0])
    if not scored or scored[-1][0] < _SIMILAR:
        return None
    tied = len(scored) > 1 and scored[-1][0] == scored[-2][0]
    return None if tied else scored[-1][1]


def _role_of(path: Path) -> str | None:
    return role_in(path.name) or role_in(path.parent.name)


def _exchangeable(path: Path, other: Path) -> bool:
    return str(other).casefold() in (str(name).casefold() for name in _exchanged(path))


def _exchanged(path: Path) -> Iterator[Path]:
    """The paths that the partner of ``path`` would have."""
    folders = [path.parent, *(path.parent.with_name(name) for name in _swapped(path.parent.name))]
    names = [path.name, *_swapped(path.name)]
    yield from (folder / name for folder in folders for name in names if folder / name != path)


def _swapped(name: str) -> set[str]:
    """The name with each word for an expert exchanged, one at a time and all at once."""
    spoken = [word for word in words(name) if _speaks_of_noise(word)]
    everything, singles = name, set()
    for word in reversed(spoken):
        other = _cased(_SWAP[word.text.lower()], word.text)
        singles.add(name[: word.start] + other + name[word.end :])
        everything = everything[: word.start] + other + everything[word.end :]
    return singles | ({everything} if spoken else set())


def _cased(word: str, like: str) -> str:
    if like.isupper():
        return word.upper()
    return word.capitalize() if like[0].isupper() else word


def _likeness(path: Path, other: Path) -> float:
    """How much two names share beside their role, in [0, 2]; 0 if versions or variants differ."""
    mine, theirs = _content(path), _content(other)
    if Counter(filter(_has_digit, mine)) != Counter(filter(_has_digit, theirs)):
        return 0.0
    ratio = SequenceMatcher(None, " ".join(mine), " ".join(theirs)).ratio()
    return ratio + (path.parent == other.parent and ratio >= _SIMILAR)


def _content(path: Path) -> list[str]:
    name = re.sub(r"(?i)wan[ _.-]?2[._-]?([12])(?!\d)", r"wan2\1", _bare(path.name))
    kept = [word.text.lower() for word in words(name) if not _speaks_of_noise(word)]
    return re.findall(r"[a-z0-9]+", _VARYING.sub(" ", " ".join(kept)))


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)
