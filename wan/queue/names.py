"""What people may set in a workflow, and by which names: ``prompt``, ``seed``, ``steps``, ``node.input``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from ..files import shown
from ..workflow import PRIMITIVES, Link, Node, Workflow
from .catalog import SEEDS, Catalog

PROMPT, NEGATIVE, SEED = "prompt", "negative", "seed"
_SIDES = {PROMPT: "positive", NEGATIVE: "negative"}


@dataclass(frozen=True, slots=True)
class Place:
    """An input of a node that holds a value."""

    node: str
    input: str


def find_places(workflow: Workflow, name: str, catalog: Catalog) -> tuple[Place, ...]:
    """The inputs that ``name`` sets; several only for ``seed``, which sets them all.

    Raises:
        ValueError: nothing or too much has this name; the sentence lists what there is.
    """
    if name == SEED:
        found = _seeds(workflow)
    elif name in _SIDES and (prompts := _prompts(workflow, _SIDES[name])):
        found = prompts
    else:
        found = _plain(workflow, name) or _dotted(workflow, name, catalog)
    if not found:
        raise ValueError(
            f"nothing in the workflow is called {shown(name)!r}; use one of {shown(_list(workflow))}, "
            "or node.input with a node's number or title"
        )
    if len(found) > 1 and name != SEED:
        both = ", ".join(f"{place.node}.{place.input}" for place in found)
        raise ValueError(f"{shown(name)!r} is several inputs; say which: {shown(both)}")
    return tuple(found)


def _list(workflow: Workflow) -> str:
    """All names that mean one thing."""
    names = [name for name, side in _SIDES.items() if _prompts(workflow, side)]
    names += [SEED] if _seeds(workflow) else []
    counts = Counter(place.input for place in _values(workflow))
    names += [name for name, count in counts.items() if count == 1]
    return ", ".join(dict.fromkeys(names))


def _values(workflow: Workflow) -> Iterator[Place]:
    for node in workflow.nodes.values():
        for name, value in node.inputs.items():
            if not isinstance(value, Link):
                yield Place(node.id, name)


def _plain(workflow: Workflow, name: str) -> list[Place]:
    return [place for place in _values(workflow) if place.input == name]


def _dotted(workflow: Workflow, name: str, catalog: Catalog) -> list[Place]:
    """``node.input``; both may hold dots themselves."""
    found: dict[Place, None] = {}
    for at in (at for at, letter in enumerate(name) if letter == "."):
        which, wanted = name[:at], name[at + 1 :]
        for node in workflow.nodes.values():
            if which in (node.id, node.title, node.kind) and (
                wanted in node.inputs or wanted in catalog.widgets(node.kind)
            ):
                found[_held(workflow, node, wanted)] = None
    return list(found)


def _held(workflow: Workflow, node: Node, name: str) -> Place:
    """Where the value of an input is: there, or in the node of a value it is linked to.

    Raises:
        ValueError: it is made by another node.
    """
    seen = set()
    while isinstance(node.inputs.get(name), Link):
        source = workflow.source(node, name)
        if source is None or source[0].kind not in PRIMITIVES or node.id in seen:
            told = "another node" if source is None else f"node {source[0].id} ({source[0].title})"
            raise ValueError(
                f"{name} of node {node.id} ({shown(node.title)}) is made by {shown(told)}; set what "
                "that node is given"
            )
        seen.add(node.id)
        node, name = source[0], "value"
    return Place(node.id, name)


def _seeds(workflow: Workflow) -> list[Place]:
    """Every seed that is a number in the file."""
    found: dict[Place, None] = {}
    for node in workflow.nodes.values():
        for name in SEEDS:
            if name in node.inputs:
                try:
                    found[_held(workflow, node, name)] = None
                except ValueError:  # made by a node that knows better
                    continue
    return list(found)


def _prompts(workflow: Workflow, side: str) -> list[Place]:
    """The texts that reach an input called ``positive`` or ``negative`` somewhere."""
    found: dict[Place, None] = {}
    for user in workflow.nodes.values():
        node, seen = user, set[str]()
        source = workflow.source(user, side)
        while source is not None and source[0].id not in seen:
            node = source[0]
            seen.add(node.id)
            name = next((n for n in (side, "text", "prompt") if _is_text(workflow, node, n)), None)
            if name is not None:
                found[_held(workflow, node, name)] = None
                break
            source = workflow.source(node, side) or workflow.source(node, "conditioning")
    return list(found)


def _is_text(workflow: Workflow, node: Node, name: str) -> bool:
    try:
        return isinstance(workflow.value(node, name), str)
    except ValueError:
        return False
