"""What a file's or folder's name says: which expert it is for, which release it belongs to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

HIGH, LOW = "high_noise", "low_noise"
ROLES = (HIGH, LOW)
SPOKEN = {
    "high": HIGH, "highnoise": HIGH, "hinoise": HIGH, "hi": HIGH, "hn": HIGH, "h": HIGH,
    "low": LOW, "lownoise": LOW, "lonoise": LOW, "lo": LOW, "ln": LOW, "l": LOW,
}  # fmt: skip
"""Words that may stand for an expert; the short ones only in capitals or before "noise"."""
LETTERS = ("H", "L", "HN", "LN")
_OTHERWISE = frozenset((
    "light", "lighting", "key", "res", "resolution", "quality", "poly", "detail", "details",
    "contrast", "angle", "vram", "rank", "fps", "motion", "saturation", "fidelity", "end", "def",
    "definition", "speed", "ram", "step", "steps", "cfg", "mem", "memory", "precision", "dynamic",
    "heel", "heels", "waist", "waisted", "neck", "rise", "cut", "fantasy", "fade", "shot", "ponytail",
))  # fmt: skip
"""Words after ``high`` or ``low`` that make it speak of something else; ``4steps`` is none of them."""
_TECHNICAL = frozenset((
    "lora", "lokr", "loha", "locon", "dora", "adapter", "model", "models", "expert", "rank", "dim",
    "alpha", "step", "steps", "epoch", "epochs", "ep", "lightning", "lightxv", "moe", "distill",
    "distilled", "seko", "comfy", "comfyui", "kijai", "diffusers", "peft", "wan", "final", "last",
    "merged", "pruned", "resized", "extracted", "ckpt", "checkpoint", "fp", "bf", "emfn", "e", "s",
    "v", "k", "b", "r", "q", "iq", "int", "gguf", "scaled", "ab", "tv", "iv", "tiv", "and", "high",
    "low",
))  # fmt: skip
"""Words that speak of the file, after their digits are taken off: ``v2``, ``rank64``, ``14b``, ``Q5``."""
_FEW_STEPS = re.compile(
    r"(?<![a-z])(lightning|lightx2v|(step)?distill(ed|ation)?|causvid|dmd)(?![a-z])"
    r"|(?<![a-z0-9.])[48][ _-]?steps?(?![a-z0-9])"
)


class Word(NamedTuple):
    """A run of letters and digits in its place."""

    start: int
    end: int
    text: str


def words(name: str) -> Iterator[Word]:
    """Words of a name, with their digits; a capital after small letters begins a new one."""
    breaks = r"(?<=[a-z])(?=[A-Z])|(?<=\d)(?=[A-Z][a-z])|(?<=[A-Z])(?=(?:High|Low)(?![a-z]))"
    breaks += r"|(?<=\d)(?=(?:high|low)noise)"  # wan22lownoise
    inner = [match.start() for match in re.finditer(breaks, name)]
    for match in re.finditer(r"[A-Za-z0-9]+", name):
        cuts = [match.start(), *(cut for cut in inner if match.start() < cut < match.end())]
        for start, end in zip(cuts, [*cuts[1:], match.end()], strict=True):
            yield Word(start, end, name[start:end])


def role_of(name: str) -> str | None:
    """The expert that a checkpoint's name speaks of, or None; both is None too.

    A checkpoint has no subject, so "high" and "low" speak of noise unless what follows says otherwise.
    """
    return _role(name, _not_otherwise)


def lora_role_of(name: str) -> str | None:
    """The expert that the name of a LoRA (without its ending) speaks of, or None; both is None too.

    Stricter than :func:`role_of`, because here "high" may as well be a word of the subject (high heels,
    low light): it counts only where the word after it is technical, or where it alone is in capitals.
    """
    return _role(name, _among_technical)


def _role(name: str, counts: Callable[[str, str, str], int | None]) -> str | None:
    """The role of the weightiest words; ``counts`` weighs a word by the two after it."""
    spelled = [word.text for word in words(name)]
    found: tuple[set[str], set[str], set[str]] = (set(), set(), set())
    for text, after, then in zip(spelled, [*spelled[1:], ""], [*spelled[2:], "", ""], strict=False):
        bare = re.sub(r"\d+[a-z]*$", "", text.lower())
        role = SPOKEN.get(bare)
        if role is None:
            continue
        noise = bare.endswith("noise") or after.lower() == "noise"
        weight = 0 if noise else counts(text, after, then)
        if weight is not None:
            found[weight].add(role)
    told = next((roles for roles in found if roles), set())
    return next(iter(told)) if len(told) == 1 else None


def _not_otherwise(text: str, after: str, then: str) -> int | None:
    if not re.fullmatch(r"(high|low)(\d.*)?", text.lower()):
        return None
    if after.lower() not in _OTHERWISE:
        return 1
    if after.lower() == "lighting" and re.fullmatch(r"v\d+", then.lower()):
        return 1  # "Lightning", misspelt
    return 1 if text.isupper() and not after.isupper() and _technical(after) else None


def _among_technical(text: str, after: str, then: str) -> int | None:
    if text.lower() in ("high", "low"):
        alone = text.isupper() and after and not after.isupper()
        return 1 if alone or _technical(after) else None
    return 2 if text in LETTERS and _technical(after) else None


def _technical(word: str) -> bool:
    bare = re.sub(r"\d", "", word.lower())
    return not bare or bare in _TECHNICAL


def release_of(name: str) -> str | None:
    """``Wan2.1`` or ``Wan2.2`` if the name says one of them, else None."""
    found = set(re.findall(r"wan[ _.-]?v?2[._-]?([12])(?!\d)", name.lower()))
    return f"Wan2.{found.pop()}" if len(found) == 1 else None


def is_distilled(name: str) -> bool:
    """Whether the name says that few steps without guidance are enough."""
    parted = "_".join(word.text for word in words(name))
    return any(_FEW_STEPS.search(spelled.lower()) for spelled in (name, parted))
