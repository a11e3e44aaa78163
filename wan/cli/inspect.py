"""``inspect``: what weight and LoRA files are, and whether two experts are a pair."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from ..checkpoint import Checkpoint, check_complete, find_parts, format_card, open_checkpoint
from ..checkpoint.identity import identify, pair_problems
from ..files import is_folder, shown
from ..keys.roles import HIGH, LOW
from ..lora import is_lora, lora_card
from .bar import Bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Any number of files."""
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="weight file, folder or LoRA"
    )


def run(given: argparse.Namespace, bar: Bar) -> None:
    """Print a card for each file; two experts are compared too.

    Raises:
        ValueError: some files cannot be used; the others have been told of.
    """
    experts: list[Checkpoint] = []
    flawed = 0
    paths = [part for path in given.files for part in _parts(path)]
    names = Counter(path.name for path in paths)
    for path in paths:
        card, usable = _card(path, experts)
        if usable and names[path.name] > 1:
            card = card.replace(shown(path.name), shown(path), 1)
        print(card)
        flawed += not usable
    if len(experts) == 2:
        print(_pair(*experts))
    if flawed:
        raise ValueError(f"{flawed} of {len(paths)} files cannot be used")


def _parts(path: Path) -> list[Path]:
    """The four parts of a repository, or the path itself."""
    if not is_folder(path):
        return [path]
    try:
        return list(find_parts(path).values())
    except (ValueError, OSError):
        return [path]


def _card(path: Path, experts: list[Checkpoint]) -> tuple[str, bool]:
    """What to say of one file, and whether it can be used; an expert is added to ``experts``."""
    try:
        if not is_folder(path) and is_lora(path):
            return lora_card(path), True
        checkpoint = open_checkpoint(path)
        check_complete(checkpoint)
        card = format_card(checkpoint)
    except (ValueError, OSError) as error:
        return f"not usable: {error}", False
    if checkpoint.kind == "transformer":
        experts.append(checkpoint)
    return card, True


def _pair(first: Checkpoint, second: Checkpoint) -> str:
    """What the two experts are to each other; what nothing tells is not guessed."""
    if identify(first).role == LOW or identify(second).role == HIGH:
        first, second = second, first
    problems = pair_problems(first, second)
    if problems:
        return "\n".join(f"not a pair: {problem}" for problem in problems)
    same = first.name == second.name
    told = [
        f"{expert.where if same else expert.name} "
        + (f"is {name} noise" if identify(expert).role else "does not say which expert it is")
        for expert, name in ((first, "high"), (second, "low"))
    ]
    known = all(identify(expert).role for expert in (first, second))
    return f"{'a pair' if known else 'maybe a pair'}: {', '.join(told)}"
