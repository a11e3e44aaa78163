"""What made the value on a link: the nodes before it, their settings and their files, as one name.

Two runs may share their steps only if nothing that made their MODELs differs, and no MODEL can say what
other packs hung on it. The graph can: equal nodes with equal inputs, back to files of equal size and
time of change. Ids of nodes do not count. Whatever cannot be told makes the whole name unknown.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import folder_paths
from comfy_execution.graph_utils import is_link
from comfy_execution.utils import get_executing_context

from ...wan.state import run_key
from . import compat
from .lora_files import AUTO

log = logging.getLogger(__name__)

OURS = "WanExperts"
_REFUSING = ("strict", "allow_mismatch")
"""Inputs of ours that let a node refuse its files, and act on nothing else."""
_PATH = 4096
"""Characters beyond which a text is no path."""


class UnknownOrigin(ValueError):
    """Something that could make another result has no name that lasts."""


def made_by(hidden: Any, name: str) -> str | None:
    """What made the input ``name`` of the node under way; None where that cannot be told.

    ``hidden`` is the node's own, with ``dynprompt``. Of a node that runs several times over lists, each
    run counts as another.
    """
    try:
        context, graph = get_executing_context(), hidden.dynprompt
        link = graph.get_node(context.node_id)["inputs"][name]
        return run_key({"value": _Reader(graph).value(link), "run": context.list_index})
    except UnknownOrigin as error:
        log.info("runs of this graph cannot be resumed: %s", error)
    except Exception as error:  # noqa: BLE001 - graphs of other packs may hold anything
        log.info(
            "runs of this graph cannot be resumed: what makes %s is not known (%r)", name, error
        )
    return None


class _Reader:
    """Names of the nodes of one graph, each read once."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self._names: dict[tuple[str, frozenset[str]], str] = {}
        self._under_way: set[str] = set()

    def value(self, given: Any) -> object:
        """An input: what made it, or what it is, with the files it may name."""
        if is_link(given):
            source, slot = given
            return {"node": self._node(source, int(slot)), "slot": int(slot)}
        return {"is": _plain(given), "files": [list(found) for found in _files(given)]}

    def _node(self, node_id: str, slot: int) -> str:
        node = self._graph.get_node(node_id)
        kind, inputs = node["class_type"], node["inputs"]
        used = _used(kind, slot, inputs)
        if (node_id, used) in self._names:
            return self._names[node_id, used]
        if node_id in self._under_way:
            raise UnknownOrigin(f"{kind} comes after itself")
        self._under_way.add(node_id)
        made = {
            "class": kind,
            "changed": _changed(kind, node),
            "inputs": {name: self.value(inputs[name]) for name in used},
        }
        self._under_way.remove(node_id)
        self._names[node_id, used] = run_key(made)
        return self._names[node_id, used]


def _used(kind: str, slot: int, inputs: Mapping[str, Any]) -> frozenset[str]:
    """Inputs that act on one output: of our nodes for two experts, those of the other one do not.

    So a run whose low-noise expert changed still shares its high-noise steps.
    """
    every = frozenset(inputs)
    if slot not in (0, 1) or kind not in ("WanExpertsLoader", "WanExpertsLora"):
        return every
    other = ("low_noise", "high_noise")[slot]
    files = [given for name, given in inputs.items() if name.startswith("lora_")]
    if any(given == AUTO or is_link(given) for given in files):
        return every  # the file of one is chosen by that of the other
    return frozenset(name for name in every if not name.endswith(other) and name not in _REFUSING)


def _changed(kind: str, node: Mapping[str, Any]) -> object:
    """What a node says of its inputs beyond their values, as ComfyUI has asked it before the run."""
    made = compat.node_class(kind)
    if made is None or getattr(made, "NOT_IDEMPOTENT", False):
        raise UnknownOrigin(f"{kind} may give something else each time")
    if kind.startswith(OURS) or not compat.tells_changes(made):
        return None  # ours tell of files alone, which are looked at here
    if "is_changed" not in node:
        raise UnknownOrigin(f"{kind} was not asked whether it changed")
    return _plain(node["is_changed"])


def _plain(given: Any) -> object:
    """A value as JSON holds it."""
    if isinstance(given, float) and not math.isfinite(given):
        raise UnknownOrigin("a node changes each time")
    if given is None or isinstance(given, (str, int, float)):
        return given
    if isinstance(given, (list, tuple)):
        return [_plain(part) for part in given]
    if isinstance(given, Mapping):
        return {str(name): _plain(part) for name, part in given.items()}
    raise UnknownOrigin(f"a node was given {type(given).__name__} as a value")


def _files(given: Any) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of every file that a text may name in ComfyUI's folders."""
    if not isinstance(given, str) or not given.strip(" ./\\") or len(given) > _PATH:
        return
    roots = {root for kind in folder_paths.folder_names_and_paths.values() for root in kind[0]}
    roots |= {folder_paths.get_input_directory(), folder_paths.get_output_directory()}
    text = given.removesuffix(" [input]").removesuffix(" [output]").removesuffix(" [temp]")
    for root in sorted(roots):
        path = Path(root) / text  # a whole path stays as it is
        try:
            parts = sorted(path.iterdir()) if path.is_dir() else [path]
            for part in parts:
                if part.is_file():
                    told = os.stat(part)
                    yield part.name, told.st_size, told.st_mtime_ns
        except (OSError, ValueError):  # no path at all
            continue
