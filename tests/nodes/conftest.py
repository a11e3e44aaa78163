"""One real server per ComfyUI found, kept for the whole session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from wanexperts import comfy_server

from .checkouts import CHECKOUTS
from .random_weights import write_all

HERE = Path(__file__).parent
PROBES = [
    HERE / f"probe_{name}.py"
    for name in ("nodes", "compiled", "memory", "models", "plan", "runs", "text")
]
# Without a ComfyUI one test says so, in one line; the others would only repeat it.
collect_ignore = [] if CHECKOUTS else [path.name for path in HERE.glob("test_on_*.py")]


@pytest.fixture(scope="session")
def random_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ``models`` folder of random files."""
    folder = tmp_path_factory.mktemp("models")
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def servers(random_models: Path) -> Iterator[Callable[[Path], comfy_server.Host]]:
    """The server of a ComfyUI with our pack and the random files, started when first asked for."""
    running: dict[Path, comfy_server.Host] = {}

    with ExitStack() as stack:

        def server(checkout: Path) -> comfy_server.Host:
            if checkout not in running:
                options = ("--cpu", "--preview-method", "latent2rgb")
                host = comfy_server.Host(checkout, options=options, node_files=PROBES)
                running[checkout] = stack.enter_context(host)
                shutil.copytree(random_models, host.base / "models", dirs_exist_ok=True)
            return running[checkout]

        yield server


@pytest.fixture(scope="module", params=CHECKOUTS, ids=lambda path: path.name)
def host(request: pytest.FixtureRequest, servers) -> Iterator[comfy_server.Host]:
    """The server, which keeps nothing of one file's tests for the next: no file, model or result.

    Folders stay: ComfyUI remembers those it has listed.
    """
    server = servers(request.param)
    kept = set(server.base.rglob("*"))
    yield server
    for path in set(server.base.rglob("*")) - kept:
        if not path.is_dir():
            path.unlink()
    server.post("/free", {"unload_models": True, "free_memory": True})


@pytest.fixture(scope="session")
def checkouts() -> list[Path]:
    """Every ComfyUI found, best first."""
    return CHECKOUTS
