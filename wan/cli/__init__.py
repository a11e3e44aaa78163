"""``python -m wan``: what the library does, without a host."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import torch

from .. import __version__
from . import convert, decode, generate, inspect, plan, queue, recipe, run, verify
from .bar import Bar, Messages

FAILED, BAD_INPUT = 1, 2
INTERRUPTED = 130
COMMANDS = {
    "generate": generate,
    "run": run,
    "queue": queue,
    "plan": plan,
    "decode": decode,
    "recipe": recipe,
    "verify": verify,
    "inspect": inspect,
    "convert": convert,
}
"""Name of a command -> the module with its ``add_arguments`` and ``run``."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of the whole usage."""
        self.exit(BAD_INPUT, f"error: {message}; see --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(
        prog="python -m wan", description="Wan2.2 text to video: two experts, one run."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        told = (module.__doc__ or "").partition(": ")[2].partition("\n")[0]
        module.add_arguments(commands.add_parser(name, help=told.rstrip("."), description=told))
    return parser


class _Interrupt:
    """Ctrl-C that is remembered: compiled code under way may turn it into an error of its own."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 if the run failed, 2 for bad input, 130 when interrupted."""
    bar, interrupt = Bar(sys.stderr), _Interrupt()
    messages = Messages(sys.stderr, bar)
    logging.basicConfig(format="%(message)s", level=logging.WARNING, handlers=[messages])
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        given = build_parser().parse_args(argv)
        COMMANDS[given.command].run(given, bar)
    except (KeyboardInterrupt, ArithmeticError, ValueError, OSError, RuntimeError) as error:
        bar.close()
        return _report(error, interrupted=interrupt.seen)
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


def _report(error: BaseException, *, interrupted: bool) -> int:
    """Say in one sentence what ended the run; returns the exit code. Errors of ours are raised again."""
    if interrupted or isinstance(error, KeyboardInterrupt):
        print("interrupted; no broken file was left", file=sys.stderr)
        return INTERRUPTED
    if not isinstance(error, (ArithmeticError, ValueError, OSError, torch.cuda.OutOfMemoryError)):
        raise error
    print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT if isinstance(error, (ValueError, OSError)) else FAILED
