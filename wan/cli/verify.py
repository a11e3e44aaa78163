"""``verify``: what differs between the runs that made two files, and whether it can change the picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..manifest import read_manifest, verdict
from .bar import Bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two files of this project."""
    told = "mp4, PNG, or saved latents"
    parser.add_argument("first", type=Path, metavar="A", help=told)
    parser.add_argument("second", type=Path, metavar="B", help=told)


def run(given: argparse.Namespace, bar: Bar) -> None:
    """Print one line on the latents, then a line for each difference.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file holds no record of its run.
    """
    print(verdict(read_manifest(given.first), read_manifest(given.second)))
