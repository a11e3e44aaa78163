"""``recipe``: settings of another program as a run of this one, and the command for it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from ..files.documents import read_small
from ..recipes import command, read_recipe, report
from .bar import Bar

_PROMPT = "PROMPT"
_OUT = "clip.mp4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The text comes from a file, or from what is typed or piped in."""
    parser.add_argument(
        "file", metavar="FILE",
        help="command of the official code, diffusers call, LightX2V JSON or ComfyUI graph with two "
        "KSamplerAdvanced; - reads what is piped in",
    )  # fmt: skip


def run(given: argparse.Namespace, bar: Bar) -> None:
    """Print what was read, and the ``generate`` command for it.

    Raises:
        OSError: no such file.
        ValueError: it holds no recipe that is known.
    """
    recipe = read_recipe(_text(given.file))
    words, missing = command(recipe)
    if recipe.prompt is None:
        words = ["--prompt", _PROMPT, *words]
    print(report(recipe))
    for sentence in missing:
        print(f"note: {sentence}")
    print(shlex.join(["python", "-m", "wan", "generate", *words, "--out", _OUT]))


def _text(name: str) -> str:
    if name == "-":
        return sys.stdin.read()
    data = read_small(Path(name))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text; give a file of settings") from error
