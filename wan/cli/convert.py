"""``convert``: weights or a LoRA from one published layout to another."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoint import open_checkpoint
from ..convert import DTYPES, LAYOUTS, convert, convert_lora
from ..files import is_folder
from ..lora import DIALECTS, is_lora
from .bar import Bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A source, a target and what it shall be."""
    parser.add_argument("source", type=Path, help="weight file or folder, or a LoRA file")
    parser.add_argument("out", type=Path, help="file or folder to make")
    parser.add_argument(
        "--to", required=True, choices=list(dict.fromkeys([*LAYOUTS, *DIALECTS])),
        help=f"weights: {', '.join(LAYOUTS)}; LoRA: {', '.join(DIALECTS)}",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the weights; default: as stored")


def run(given: argparse.Namespace, bar: Bar) -> None:
    """Convert and print the files made; raises ValueError or OSError before anything is written."""
    dtype = DTYPES[given.dtype] if given.dtype else None
    if not is_folder(given.source) and is_lora(given.source):
        made = convert_lora(given.source, given.out, dialect=given.to, dtype=dtype)
    else:
        made = convert(open_checkpoint(given.source), given.out, layout=given.to, dtype=dtype)
    for path in made:
        print(path)
