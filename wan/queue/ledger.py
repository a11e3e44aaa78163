"""The folder of results: what is there, under which names, and one line of JSON for each prompt."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import shown
from .jobs import Job
from .server import Ended, Saved, Server

MANIFEST = "manifest.jsonl"
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,10}\Z")


class Ledger:
    """A folder of results; used by several threads."""

    def __init__(self, folder: Path) -> None:
        """Make ``folder`` if it is not there, and read what is written down in it.

        Raises:
            OSError: that is not possible.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = (error.strerror or "").lower()
            raise OSError(
                f"cannot write in {shown(folder)} ({told}); choose another folder"
            ) from error
        self.folder = folder
        self._path = folder / MANIFEST
        self._lock = threading.Lock()
        self._done = {line["digest"]: line for line in _lines(self._path)}

    def has(self, job: Job) -> bool:
        """Whether the results of ``job`` are here, whole."""
        line = self._done.get(job.digest)
        return line is not None and all(
            (path := self.folder / file["name"]).is_file() and path.stat().st_size == file["bytes"]
            for file in line["files"]
        )

    def keep(self, server: Server, job: Job, prompt: str, ended: Ended) -> list[Path]:
        """Download what a prompt saved, then write it down; returns the files.

        Raises:
            Missing: the server has a file no more.
            Unavailable: the server went away.
            OSError: a file cannot be written here.
        """
        names = result_names(job.name, ended.files)
        sizes = [
            server.download(saved, self.folder / name)
            for name, saved in zip(names, ended.files, strict=True)
        ]
        line = {
            "name": job.name,
            "digest": job.digest,
            "prompt_id": prompt,
            "seed": job.seed,
            "settings": dict(job.settings),
            "server": str(server.address),
            "seconds": ended.seconds,
            "files": [
                {"name": name, "bytes": size, "node": saved.node, "on_server": _place(saved)}
                for name, size, saved in zip(names, sizes, ended.files, strict=True)
            ],
            "texts": dict(ended.texts),
        }
        with self._lock:
            self._append(json.dumps(line, ensure_ascii=False))
            self._done[job.digest] = line
        return [self.folder / name for name in names]

    def _append(self, line: str) -> None:
        with self._path.open("ab+") as file:
            file.seek(max(0, file.seek(0, 2) - 1))
            # A line that was cut off by a crash must not swallow this one.
            broken = file.read(1) not in (b"", b"\n")
            file.write(f"{chr(10) if broken else ''}{line}\n".encode())


def result_names(name: str, files: tuple[Saved, ...]) -> list[str]:
    """Names of a prompt's files: they depend on the prompt alone, not on the server's counters."""
    suffixes = [match[0] if (match := _SUFFIX.search(saved.name)) else "" for saved in files]
    if len(files) == 1:
        return [f"{name}{suffixes[0]}"]
    found = []
    counts: dict[str, int] = {}
    for saved, suffix in zip(files, suffixes, strict=True):
        node = re.sub(r"[^A-Za-z0-9]", "_", saved.node)
        counts[node] = counts.get(node, 0) + 1
        found.append(f"{name}-node{node}-{counts[node]}{suffix}")
    return found


def _place(saved: Saved) -> str:
    return "/".join(filter(None, (saved.folder, saved.subfolder, saved.name)))


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a manifest."""
    if path.is_file():
        yield from filter(None, map(_line, path.read_bytes().splitlines()))


def _line(text: bytes) -> dict[str, Any] | None:
    """None for a line that was cut off by a crash."""
    try:
        line: dict[str, Any] = json.loads(text)
        names = [file["name"] for file in line["files"]]
        sizes = [file["bytes"] for file in line["files"]]
    except (ValueError, KeyError, TypeError):
        return None
    whole = isinstance(line.get("digest"), str) and all(isinstance(name, str) for name in names)
    return line if whole and all(isinstance(size, int) for size in sizes) else None
