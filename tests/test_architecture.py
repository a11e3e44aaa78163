"""The house's shape: import levels of ``wan/``, no host inside it, and a map that tells the truth."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WAN = ROOT / "wan"

LEVELS = (
    {"shapes", "config", "ops", "files", "keys", "__version__"},
    {"rope", "attention", "layers", "schedule", "guidance", "noise", "quant"},
    {"backends", "transformer", "vae", "text", "solvers", "experts", "sentinel", "conditioning"},
    {
        "checkpoint",
        "compiled",
        "lora",
        "caching",
        "state",
        "sampling",
        "switch",
        "plan",
        "presets",
        "video",
    },
    {"pipeline", "convert", "cost", "manifest", "workflow"},
    {"recipes", "queue"},
    {"cli"},
    {"__main__", "__init__"},
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_api_nodes",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "nodes",
    "server",
}
FILES = sorted(WAN.rglob("*.py"))
NODES = ROOT / "nodes"
NODE_FILES = sorted(NODES.rglob("*.py"))


def _unit(path: Path) -> str:
    """Name of the module or sub-package directly under ``wan/`` that holds ``path``."""
    return path.relative_to(WAN).parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(leading dots, dotted target) of every import; ``from . import a`` counts as ``a``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.level, node.module
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.level, alias.name) for alias in node.names)


def _violations(path: Path, source: str) -> list[str]:
    """Every broken rule of one file under ``wan/``, in words."""
    unit, depth = _unit(path), len(path.relative_to(WAN).parts)
    tree = ast.parse(source)
    found = [
        "import *"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names)
    ]
    for dots, target in _imports(tree):
        head = target.split(".")[0]
        if dots == 0 and head in HOST:
            found.append(f"imports the host: {target}")
        elif dots == 0 and head in {"wan", "wanexperts"}:
            found.append(f"imports {target} by its absolute name")
        elif dots > depth:
            found.append(f"imports from outside wan/: {'.' * dots}{target}")
        elif dots == depth and LEVEL.get(head, 99) >= LEVEL[unit]:
            found.append(f"level {LEVEL[unit]} imports {head} of level {LEVEL.get(head)}")
    return found


def test_there_is_something_to_check() -> None:
    assert {"shapes.py", "schedule.py"} <= {path.name for path in FILES}
    assert {"sampling.py", "host/guider.py"} <= {str(p.relative_to(NODES)) for p in NODE_FILES}


# What a node may know of ComfyUI: the interface it offers to nodes. All else goes through nodes/host.
OFFERED = {"comfy_api"}
MATHS = {"torch", "numpy", "einops", "PIL", "torchvision"}


def _node_violations(path: Path, source: str) -> list[str]:
    """Broken rules of one file under ``nodes/``: maths or ComfyUI's inside outside ``host/``."""
    if path.parent != NODES:
        return []
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    tree = ast.Module(
        [node for node in ast.walk(tree)
         if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in typing_only],
        [],
    )  # fmt: skip
    heads = {(dots, target.split(".")[0]) for dots, target in _imports(tree)}
    found = [f"does tensor maths: {head}" for dots, head in heads if not dots and head in MATHS]
    return found + [
        f"reaches into the host: {head}"
        for dots, head in heads
        if not dots and head in HOST - OFFERED
    ]


@pytest.mark.parametrize("path", NODE_FILES, ids=lambda path: str(path.relative_to(NODES)))
def test_nodes_leave_maths_and_the_host_to_others(path: Path) -> None:
    assert not _node_violations(path, path.read_text())
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        ("sampling.py", "import torch", "does tensor maths: torch"),
        ("sampling.py", "from torch.nn import functional", "does tensor maths: torch"),
        ("sampling.py", "def f():\n    from einops import rearrange", "does tensor maths: einops"),
        ("loaders.py", "import folder_paths", "reaches into the host: folder_paths"),
        ("loaders.py", "import comfy.model_management as mm", "reaches into the host: comfy"),
        ("sampling.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\n"
         "else:\n    import torch", "does tensor maths: torch"),
    ],
)  # fmt: skip
def test_the_node_checker_sees_each_violation(file: str, source: str, words: str) -> None:
    assert _node_violations(NODES / file, source) == [words]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("sampling.py", "from comfy_api.latest import io\nfrom .host import compat"),
        ("sampling.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("host/vae.py", "import torch\nimport comfy.sd"),
    ],
)
def test_the_node_checker_lets_good_imports_pass(file: str, source: str) -> None:
    assert not _node_violations(NODES / file, source)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(WAN)))
def test_every_file_has_a_level_and_imports_only_lower_ones(path: Path) -> None:
    assert _unit(path) in LEVEL, "give it a level here and in docs/architecture.md"
    assert not _violations(path, path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(WAN)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize(
    ("file", "source", "words"),
    [
        ("schedule.py", "from .solvers import euler", "level 1 imports solvers of level 2"),
        ("schedule.py", "from . import guidance", "level 1 imports guidance of level 1"),
        ("schedule.py", "from .unheard_of import x", "level 1 imports unheard_of of level None"),
        ("vae/model.py", "from ..checkpoint import x", "level 2 imports checkpoint of level 3"),
        ("vae/model.py", "from ...nodes import x", "outside wan/: ...nodes"),
        ("sampling.py", "from ..nodes.host import x", "outside wan/: ..nodes.host"),
        ("sampling.py", "def f():\n    import comfy.ops", "imports the host: comfy.ops"),
        ("sampling.py", "from folder_paths import x", "imports the host: folder_paths"),
        ("sampling.py", "from wan.schedule import x", "by its absolute name"),
        ("sampling.py", "from .schedule import *", "import *"),
    ],
)
def test_the_checker_sees_each_violation(file: str, source: str, words: str) -> None:
    found = _violations(WAN / file, source)
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("vae/model.py", "from .causal import x\nfrom ..ops import y\nimport torch"),
        ("sampling.py", "from .schedule import x\nfrom . import solvers"),
    ],
)
def test_the_checker_lets_good_imports_pass(file: str, source: str) -> None:
    assert not _violations(WAN / file, source)


def test_the_architecture_page_names_only_what_exists() -> None:
    page = ROOT / "docs" / "architecture.md"
    if not page.exists():
        pytest.skip("docs/architecture.md is not written yet")
    named = set(
        re.findall(r"\b((?:wan|nodes|tiny|tests|benchmarks)/[\w/]*\w\.py)\b", page.read_text())
    )
    assert named, "the page names no file"
    assert not sorted(name for name in named if not (ROOT / name).exists())
