"""What names and metadata say of a LoRA: its expert, its release, its partner file.

In the name of a checkpoint "high" speaks of noise; in that of a LoRA it may as well be a word of the
subject (high heels, low light, low poly). So it counts only where the name around it is technical.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from ..files import SUFFIXES
from ..keys.roles import HIGH, LETTERS, LOW, ROLES, Word, lora_role_of, release_of, role_of, words

HIGH_FROM, LOW_TO = 800, 925
"""Timesteps around the experts' boundary (875, for image-to-video 900) that training ranges stop at."""
_SWAP = {"high": "low", "highnoise": "lownoise", "hinoise": "lonoise", "hn": "ln", "h": "l"}
_SWAP |= {low: high for high, low in _SWAP.items()}
_VARYING = re.compile(
    r"(?<![a-z0-9])(rank ?\d+|r\d+|dim ?\d+|fp\d+|bf\d+|e\dm\d\w*|q\d( [0k])?( [sml])?|e\d+|ep\d+"
    r"|epoch ?\d+|\d+ ?epo?ch?s?|s\d{3,}|steps? ?\d{3,}|\d{3,} ?steps?|0\d\d+|\d{6}|\d{8}|noise|model)"
    r"(?![a-z0-9])"
)
"""What may differ between the halves of a pair: rank, precision, how long and when each was trained."""
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


def spoken_role(path: Path) -> str | None:
    """The expert that a file's name or its folder's speaks of, if it has a partner that speaks of the other.

    Less strict than :func:`lora_role`: beside its partner even ``high-k3nk`` is plain.
    """
    return role_in(path.name) or role_of(_bare(path.name)) or role_in(path.parent.name)


def exact_partner(path: Path, candidates: Iterable[Path]) -> Path | None:
    """The other half of a pair: the same name but for the word for the expert; else as :func:`find_partner`."""
    others = list(candidates)
    mine = spoken_role(path)
    swapped = [
        other
        for other in others
        if _swappable(path, other) and mine != spoken_role(other)  # neither known is the same too
    ]
    alike = [other for other in _opposite(path, others) if _same_subject(path, other, _plain)]
    return _only(swapped) or _only(alike)


def find_partner(path: Path, candidates: Iterable[Path]) -> Path | None:
    """The other half of a pair: :func:`exact_partner`, or a name that says the same of the subject.

    Only what tells of training and storage may differ (rank, epoch, precision, date), never a word.

    Args:
        path: one half.
        candidates: files to choose from, spelled as ``path`` is (all absolute or all relative).

    Returns:
        None if no name fits, or if several fit equally well.
    """
    others = list(candidates)
    near = [other for other in _opposite(path, others) if _same_subject(path, other, _content)]
    return exact_partner(path, others) or _only(near)


def _opposite(path: Path, candidates: Iterable[Path]) -> list[Path]:
    """Those that speak of the other expert."""
    role = spoken_role(path)
    return [other for other in candidates if role and spoken_role(other) not in (None, role)]


def _only(found: list[Path]) -> Path | None:
    return found[0] if len(found) == 1 else None


def _same_subject(path: Path, other: Path, content: Callable[[Path], list[str]]) -> bool:
    beside = _same(path.parent, other.parent) or _swappable(path.parent, other.parent)
    return beside and content(path) == content(other)


def _same(path: Path, other: Path) -> bool:
    return str(path).casefold() == str(other).casefold()


def _swappable(path: Path, other: Path) -> bool:
    return _exchangeable(path, other) or _exchangeable(other, path)


def _exchangeable(path: Path, other: Path) -> bool:
    return str(other).casefold() in (str(name).casefold() for name in _exchanged(path))


def _exchanged(path: Path) -> Iterator[Path]:
    """The paths that the partner of ``path`` would have."""
    inside = path.parent.name  # the folder that all are relative to has no name
    folders = [path.parent, *(path.parent.with_name(name) for name in _swapped(inside))]
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


def _content(path: Path) -> list[str]:
    """The words of a name that tell its subject and version."""
    return re.findall(r"[a-z0-9]+", _VARYING.sub(" ", " ".join(_plain(path))))


def _plain(path: Path) -> list[str]:
    """The words of a name but those for its expert."""
    name = re.sub(r"(?i)wan[ _.-]?2[._-]?([12])(?!\d)", r"wan2\1", _bare(path.name))
    kept = (word.text.lower() for word in words(name) if not _speaks_of_noise(word))
    return [word for word in kept if word != "noise"]
