"""Where runs are kept: one folder, bounded in size, from which the same run is found again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from .files import PART, RunState, read_kept_latents, read_state

log = logging.getLogger(__name__)

LIMIT = 2**30
"""Bytes of a store besides the files of the run under way: about 50 clips' latents at 720p, or six
interrupted runs of UniPC there."""

RING = (".a.state", ".b.state")
BRANCH, LATENT = ".branch.state", ".latent"
ENDINGS = (*RING, BRANCH, LATENT)
DIGITS = 20
"""Digits of a key in a name; the whole key is in the file."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunKeys:
    """Names of a run, see :func:`~.key.run_key`.

    Attributes:
        run: of all that determines the whole run.
        branches: steps done when a stage ends -> the name of all that determines the run up to there, by
            which other runs with the same beginning find it.
    """

    run: str
    branches: Mapping[int, str] = field(default_factory=dict)

    @property
    def all(self) -> tuple[str, ...]:
        """Every name."""
        return (self.run, *self.branches.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """A folder of kept runs; it is made when the first one is.

    Attributes:
        folder: holds nothing else.
        limit: bytes it may hold besides the run under way; the oldest files go first.
    """

    folder: Path
    limit: int = LIMIT

    def path(self, key: str, ending: str) -> Path:
        """The file of ``key`` with one of ``ENDINGS``."""
        return self.folder / f"{key[:DIGITS]}{ending}"

    def find(self, keys: RunKeys) -> RunState | None:
        """The state from which most of the run is done: its own, or one with the same beginning.

        Files that cannot be used are told in the log and passed over. Never raises.
        """
        own = [self._read(self.path(keys.run, e), keys.run, read_state) for e in RING]
        others = [
            self._read(self.path(key, BRANCH), key, read_state) for key in keys.branches.values()
        ]
        found = [state for state in (*own, *others) if state is not None]
        return max(found, key=lambda state: state.step, default=None)

    def latents(self, key: str) -> Tensor | None:
        """Final latents of the run ``key``, raw (B, C, T, h, w), if it was finished. Never raises."""
        return self._read(self.path(key, LATENT), key, read_kept_latents)

    def forget_states(self, key: str) -> None:
        """Remove what a finished run does not need any more; leaves its latents and branches."""
        self._remove(self.path(key, ending) for ending in RING)

    def forget(self, keys: RunKeys) -> None:
        """Remove all that :meth:`find` and :meth:`latents` would find of a run."""
        self.forget_states(keys.run)
        self._remove([self.path(keys.run, LATENT)])
        self._remove(self.path(key, BRANCH) for key in keys.branches.values())

    def _remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            for each in (path, path.with_name(f"{path.name}{PART}")):
                with suppress(OSError):
                    each.unlink()

    def prune(self, keys: RunKeys) -> None:
        """Remove the oldest files until those of other runs than ``keys`` are within the limit."""
        own = {key[:DIGITS] for key in keys.all}
        left = self.limit
        for path, size in self._newest_first():
            if path.name.partition(".")[0] in own:
                continue
            left -= size
            if left < 0:
                with suppress(OSError):
                    path.unlink()

    def _newest_first(self) -> Iterator[tuple[Path, int]]:
        """The store's files with their sizes; others in the folder are left alone."""
        found = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.name.removesuffix(PART).endswith(ENDINGS):
                    told = path.stat()
                    found.append((told.st_mtime, path, told.st_size))
        for _, path, size in sorted(found, reverse=True):
            yield path, size

    def _read(self, path: Path, key: str, read: Callable[[Path, str], T]) -> T | None:
        try:
            return read(path, key) if path.exists() else None
        except (OSError, ValueError) as error:
            log.warning("%s; the run does without it", error)
            return None
