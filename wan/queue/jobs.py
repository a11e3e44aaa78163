"""From a workflow, settings, seeds and a table to the prompts to queue."""

from __future__ import annotations

import csv
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..files import shown
from ..files.documents import read_small
from ..workflow import Workflow
from .catalog import Catalog
from .names import SEED, Place, find_places
from .server import Graph

MOST = 100_000
"""Prompts of one command."""
MAX_SEED = 2**64 - 1
_SPACE = uuid.UUID("5f0c1c1e-6a58-4f0a-9f43-2f5a9c6f5b7d")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Job:
    """One prompt to queue.

    Attributes:
        name: of its results: what it is, and eight letters of ``digest``.
        digest: SHA-256 of the graph; equal graphs are one job, whoever asks and whenever.
        graph: in API format.
        changes: the values that differ from the file's.
        settings: the same by the names they were given with.
        seed: the seed that was given; None leaves the file's.
    """

    name: str
    digest: str
    graph: Graph
    changes: Mapping[Place, Any]
    settings: Mapping[str, Any]
    seed: int | None

    def prompt(self, attempt: int) -> str:
        """Its id on a server: the same each time, so that an answer that was lost is found again."""
        return str(uuid.uuid5(_SPACE, f"{self.digest} {attempt}"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What to make of a workflow.

    Attributes:
        settings: name -> value as text, for all prompts.
        rows: a table's rows, each name -> value as text; each is a prompt.
        seeds: each is a prompt, of each row.
    """

    settings: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, str]] = ()
    seeds: Sequence[int] = ()


def make_jobs(workflow: Workflow, wishes: Wishes, catalog: Catalog) -> list[Job]:
    """All prompts, in order: row by row, in each seed by seed.

    Raises:
        ValueError: an unknown name, a value that does not fit, two equal prompts, or a node the server
            does not have; nothing is queued before.
    """
    if missing := catalog.missing(workflow):
        raise ValueError(
            f"the server has no node {shown(', '.join(missing))}; install the pack it comes from there"
        )
    if wishes.seeds and any(SEED in given for given in (wishes.settings, *wishes.rows)):
        raise ValueError("seeds are given by --seeds and as a setting; give them in one way")
    complete = Workflow({key: catalog.completed(n) for key, n in workflow.nodes.items()})
    if len(wishes.rows or [{}]) * len(wishes.seeds or [0]) > MOST:
        raise ValueError(f"these are more than {MOST} prompts; give fewer rows or seeds")
    jobs, seen = list[Job](), dict[str, str]()
    for number, row in enumerate(wishes.rows or [{}], start=1):
        for seed in wishes.seeds or (None,):
            given = {**wishes.settings, **row}
            if seed is not None:
                given[SEED] = str(seed)
            told = f"row{number}" if wishes.rows else ""
            job = _job(complete, given, catalog, told)
            if job.digest in seen:
                first = f"{seen[job.digest]} and {told or 'two seeds'}"
                raise ValueError(f"{first} ask for the same clip; give them different seeds")
            seen[job.digest] = told or f"seed {seed}"
            jobs.append(job)
    return jobs


def read_changes(
    workflow: Workflow, given: Mapping[str, str], catalog: Catalog
) -> tuple[dict[Place, Any], dict[str, Any]]:
    """The values that settings mean: by their place, and by the names they were given with.

    Raises:
        ValueError: an unknown name, or a value that does not fit.
    """
    changes: dict[Place, Any] = {}
    settings: dict[str, Any] = {}
    for name, text in given.items():
        for place in find_places(workflow, name, catalog):
            value = catalog.value(workflow.nodes[place.node], place.input, text)
            changes[place] = settings[name] = value
    return changes, settings


def changed(workflow: Workflow, changes: Mapping[Place, Any]) -> Workflow:
    """The same workflow with other values."""
    nodes = dict(workflow.nodes)
    for place, value in changes.items():
        node = nodes[place.node]
        nodes[place.node] = replace(node, inputs={**node.inputs, place.input: value})
    return Workflow(nodes)


def _job(workflow: Workflow, given: Mapping[str, str], catalog: Catalog, told: str) -> Job:
    try:
        changes, settings = read_changes(workflow, given, catalog)
    except ValueError as error:
        raise ValueError(f"{told}: {error}" if told else str(error)) from error
    graph = changed(workflow, changes).api()
    seed = settings.get(SEED)
    plain = {
        key: {"class_type": node["class_type"], "inputs": node["inputs"]}
        for key, node in graph.items()
    }
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    words = [told, f"seed{seed}" if seed is not None else "", digest[:8]]
    return Job(
        name="-".join(filter(None, words)),
        digest=digest,
        graph=graph,
        changes=changes,
        settings=settings,
        seed=seed,
    )


def parse_settings(given: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` texts by name, the last of a name.

    Raises:
        ValueError: one is not of this form.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(
                f"--set {shown(text)!r} is not NAME=VALUE; write prompt='a red circle', for example"
            )
        found[name.strip()] = value
    return found


def parse_seeds(text: str) -> list[int]:
    """Seeds such as ``7``, ``1-8`` or ``1-4,9``, each once.

    Raises:
        ValueError: no such list, or a seed beyond 0 to 2**64 - 1.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        bounds = (first, last if dash else first)
        if not all(bound.strip().isdecimal() for bound in bounds):
            raise ValueError(f"--seeds {shown(text)!r} are no seeds; write 7, 1-8 or 1-4,9")
        low, high = (int(bound) for bound in bounds)
        if low > high or high > MAX_SEED:
            raise ValueError(
                f"--seeds {low}-{high} does not ascend within 0 to 2**64 - 1; turn it round"
            )
        if high - low >= MOST:
            raise ValueError(f"--seeds {low}-{high} are more than {MOST}; give fewer")
        found.update(dict.fromkeys(range(low, high + 1)))
    return list(found)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file (UTF-8, names in the first line); an empty cell leaves what the file has.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such table.
    """
    try:
        lines = read_small(path).decode("utf-8-sig").splitlines(keepends=True)
        rows = [row for row in csv.reader(lines, strict=True) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{shown(path)} is not a CSV file in UTF-8 ({error}); save it as one"
        ) from error
    names = [name.strip() for name in rows[0]] if rows else []
    if len(rows) < 2 or not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{shown(path)} is not a table with a name over each column, each once, and a row for each "
            "prompt; write prompt,seed in the first line, for example"
        )
    for number, row in enumerate(rows[1:], start=1):
        if len(row) > len(names):
            raise ValueError(
                f"row {number} of {shown(path)} has {len(row)} cells under {len(names)} names; put text "
                "with commas in double quotes"
            )
    return [
        {name: cell for name, cell in zip(names, row, strict=False) if cell.strip()}
        for row in rows[1:]
    ]
