"""One real server per ComfyUI found, kept for the whole session."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from wanexperts import comfy_server

from .checkouts import CHECKOUTS
from .random_weights import write_all

HERE = Path(__file__).parent
# Without a ComfyUI one test says so, in one line; the others would only repeat it.
collect_ignore = [] if CHECKOUTS else [path.name for path in HERE.glob("test_on_*.py")]


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``models`` folder of random files."""
    folder = tmp_path_factory.mktemp("models")
    write_all(folder)
    return folder


@pytest.fixture(scope="session", params=CHECKOUTS, ids=lambda path: path.name)
def host(request: pytest.FixtureRequest, random_models: Path) -> Iterator[comfy_server.Host]:
    """A server with our pack and the random files."""
    probes = [
        HERE / "probe_nodes.py",
        HERE / "probe_compiled.py",
        HERE / "probe_memory.py",
        HERE / "probe_models.py",
        HERE / "probe_plan.py",
        HERE / "probe_runs.py",
        HERE / "probe_text.py",
    ]
    options = ("--cpu", "--preview-method", "latent2rgb")
    with comfy_server.Host(request.param, options=options, node_files=probes) as server:
        shutil.copytree(random_models, server.base / "models", dirs_exist_ok=True)
        yield server


@pytest.fixture(scope="session")
def checkouts() -> list[Path]:
    """Every ComfyUI found, best first."""
    return CHECKOUTS
