"""``queue``: prompts for ComfyUI servers, followed to the files they make."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ..queue import (
    Batch,
    Job,
    Ledger,
    Pace,
    Pool,
    Server,
    Wishes,
    first_catalog,
    parse_address,
    parse_seeds,
    parse_settings,
    read_batch,
    read_table,
    run_batch,
)
from .bar import Bar
from .bars import Bars

FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A workflow, servers, and what to change in it."""
    pace = Pace()
    parser.add_argument("workflow", type=Path, help="JSON of ComfyUI, in UI or API format")
    parser.add_argument(
        "--server", action="extend", nargs="+", required=True, metavar="URL",
        help="ComfyUI: host:port, or https://host/path; several share the prompts",
    )  # fmt: skip
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of results")
    parser.add_argument(
        "--set", action="append", default=[], dest="settings", metavar="NAME=VALUE",
        help="prompt, negative, seed, an input's name, or node.input; may be repeated",
    )  # fmt: skip
    parser.add_argument("--seeds", type=_seeds, metavar="LIST", help="a clip for each: 1-8 or 3,5")
    parser.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="a clip for each row; columns are names as in --set",
    )
    parser.add_argument(
        "--auth-env", metavar="VARIABLE",
        help="environment variable with the Authorization header ('Bearer ...') for all servers",
    )  # fmt: skip
    parser.add_argument(
        "--patience", type=float, default=pace.patience, metavar="SECONDS",
        help=f"how long to wait while no server answers, default {pace.patience:g}",
    )  # fmt: skip


def run(given: argparse.Namespace, bar: Bar) -> None:
    """Make what is not in the folder yet, and print each file as it comes.

    Raises:
        OSError: a file cannot be read or written, or no server answers.
        ValueError: bad input; nothing is queued then.
        SystemExit: some prompts failed.
    """
    servers = _servers(given)
    wishes = Wishes(
        settings=parse_settings(given.settings),
        rows=read_table(given.csv) if given.csv else (),
        seeds=given.seeds or (),
    )
    pace = Pace(patience=given.patience)
    batch = read_batch(given.workflow, wishes, first_catalog(servers, pace))
    ledger = Ledger(given.out)
    there = sum(ledger.has(job) for job in batch.jobs)
    show = _Show(Bars(sys.stderr, [str(server.address) for server in servers]))
    if there:
        show.bars.say(f"{there} of {len(batch.jobs)} are in {given.out} already")
    try:
        pool = run_batch(batch, servers, ledger, show, pace)
    except BaseException:
        show.bars.close()
        _say_what_is_done(batch, ledger)
        raise
    show.bars.close()
    if pool.failed:
        _say_what_failed(pool)
        raise SystemExit(FAILED)


def _seeds(text: str) -> list[int]:
    try:
        return parse_seeds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _servers(given: argparse.Namespace) -> list[Server]:
    login = None
    if given.auth_env is not None:
        login = os.environ.get(given.auth_env, "").strip()
        if not login:
            raise ValueError(
                f"the environment variable {given.auth_env} is empty; put 'Bearer ...' there"
            )
    addresses = [parse_address(text, login) for text in given.server]
    if len({str(address) for address in addresses}) < len(addresses):
        raise ValueError("a server is given twice; name each once")
    return [Server(address) for address in addresses]


class _Show:
    """What happens, for a person: files on standard output, the rest on standard error."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars

    def step(self, server: str, job: Job, what: str, done: int, total: int) -> None:
        """See :class:`~..queue.Watcher`."""
        self.bars.show(server, done, total, f"{job.name} {what}")

    def finished(self, server: str, job: Job, files: list[Path]) -> None:
        """See :class:`~..queue.Watcher`."""
        self.bars.say(f"{job.name}: done on {server}")
        for file in files:
            self.bars.say(str(file), sys.stdout)

    def say(self, server: str, sentence: str) -> None:
        """See :class:`~..queue.Watcher`."""
        self.bars.say(sentence)


def _say_what_is_done(batch: Batch, ledger: Ledger) -> None:
    done = sum(ledger.has(job) for job in batch.jobs)
    if done:
        told = f"{done} of {len(batch.jobs)} are done; the same command goes on from there"
        print(told, file=sys.stderr)


def _say_what_failed(pool: Pool) -> None:
    for job, why in pool.failed.items():
        print(f"{job.name}: {why}", file=sys.stderr)
    total = len(pool.done) + len(pool.failed)
    print(
        f"{len(pool.failed)} of {total} failed; the same command tries them again", file=sys.stderr
    )
