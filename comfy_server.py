"""A ComfyUI server with this pack in it, spoken to over HTTP and websocket: for the demo and tests."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
PACK = "ComfyUI-WanExperts"
# Folders that help a test machine start ComfyUI; absent or unused elsewhere.
HELPERS = (ROOT / "tests" / "host_env", ROOT / ".test" / "host-site")
START_SECONDS = 180
TEXT_EVENT = 3

Graph = dict[str, Any]
Event = dict[str, Any]


class HostError(RuntimeError):
    """ComfyUI did not start, refused a graph or failed in it."""


class NotStarted(HostError):
    """The server did not come up; the end of its log is in the message."""


class Refused(HostError):
    """ComfyUI refused a graph before running it; ``answer`` is its JSON."""

    def __init__(self, answer: Mapping[str, Any]) -> None:
        """Collect the sentences a person needs."""
        self.answer = answer
        told = [answer.get("error", {}).get("message", "")]
        for node in answer.get("node_errors", {}).values():
            told += [f"{e.get('message', '')}: {e.get('details', '')}" for e in node["errors"]]
        super().__init__("; ".join(filter(None, told)))


def host_python(checkout: Path) -> str:
    """The interpreter of a checkout: its own environment if it has one, else ours."""
    for name in (".venv", "venv"):
        for path in ("bin/python", "Scripts/python.exe"):
            if (checkout / name / path).is_file():
                return str(checkout / name / path)
    return sys.executable


class Host:
    """A ComfyUI server with this pack as its only custom node: ``with Host(checkout) as host:``."""

    def __init__(
        self,
        checkout: Path,
        *,
        output: Path | None = None,
        options: Sequence[str] = ("--cpu",),
        node_files: Sequence[Path] = (),
        pack: Path = ROOT,
        folder: str = PACK,
    ) -> None:
        """``output`` is where results go (default: a temporary folder), ``options`` are flags,
        ``node_files`` single-file custom nodes to load beside the pack, which lies in ``pack`` and
        is called ``folder`` below custom_nodes.
        """
        self.checkout = checkout
        self._base = tempfile.TemporaryDirectory(prefix="wanexperts-")
        self.base = Path(self._base.name)
        self.output = output or self.base / "output"
        self.log = self.base / "server.log"
        self._options = list(options)
        self._node_files = list(node_files)
        self._pack, self._folder = pack, folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.version = ""

    def __enter__(self) -> Host:
        """Start the server and wait until it answers."""
        self._lay_out()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"127.0.0.1:{port}"
        helpers = [str(path) for path in HELPERS if path.is_dir()]
        old = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(helpers + old)}
        with self.log.open("ab") as log:  # so that it may be cut while the server writes
            self._process = subprocess.Popen(
                self._command(port), cwd=self.checkout, env=environment, stdout=log, stderr=log
            )
        with contextlib.ExitStack() as undo:
            undo.callback(self.__exit__)
            self._wait()
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the server and remove its temporary folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._base.cleanup()

    def _lay_out(self) -> None:
        for name in ("custom_nodes", "user", "models", "web", "input", "temp"):
            (self.base / name).mkdir()
        self.output.mkdir(parents=True, exist_ok=True)
        (self.base / "web" / "index.html").write_text("<html></html>")
        for file in self._node_files:
            shutil.copy(file, self.base / "custom_nodes")
        link = self.base / "custom_nodes" / self._folder
        try:
            link.symlink_to(self._pack, target_is_directory=True)
        except OSError:  # Windows without developer mode
            skip = shutil.ignore_patterns(".*", "work", "output", "__pycache__")
            shutil.copytree(self._pack, link, ignore=skip)

    def _command(self, port: int) -> list[str]:
        return [
            host_python(self.checkout), "main.py", "--port", str(port), "--dont-print-server",
            "--base-directory", str(self.base), "--output-directory", str(self.output),
            "--front-end-root", str(self.base / "web"), "--disable-api-nodes",
            "--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}", *self._options,
        ]  # fmt: skip

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise NotStarted(f"ComfyUI stopped while starting:\n{self.log_tail()}")
            try:
                self.version = self.get("/system_stats")["system"]["comfyui_version"]
            except OSError:
                time.sleep(0.3)
                continue
            if "WanExpertsSampler" not in self.get("/object_info"):
                raise NotStarted(f"ComfyUI did not load this pack:\n{self.log_tail()}")
            return
        raise NotStarted(f"ComfyUI did not answer in {START_SECONDS} s:\n{self.log_tail()}")

    def log_tail(self, characters: int = 4000) -> str:
        """The end of the server's log."""
        return self.log.read_text(errors="replace")[-characters:]

    def get(self, path: str) -> Any:
        """JSON of one route."""
        with urllib.request.urlopen(f"http://{self.url}{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Send JSON; returns JSON or None. Raises :class:`Refused` for status 400."""
        request = urllib.request.Request(
            f"http://{self.url}{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            if error.code != 400:
                raise HostError(f"{path} answered {error.code}: {text[:500]!r}") from error
            raise Refused(json.loads(text)) from None
        return json.loads(text) if text else None

    def events(self, graph: Graph, extra: Mapping[str, Any] | None = None) -> Iterator[Event]:
        """Queue ``graph`` and yield its websocket events up to and with the last one.

        Raises:
            Refused: the graph was not accepted.
        """
        import websocket

        client = uuid.uuid4().hex
        link = websocket.create_connection(f"ws://{self.url}/ws?clientId={client}", timeout=300)
        try:
            body = {"prompt": graph, "client_id": client, "extra_data": dict(extra or {})}
            answer = self.post("/prompt", body)
            if answer["node_errors"]:  # some other output of the graph was good
                raise Refused(answer)
            prompt = answer["prompt_id"]
            while True:
                message = link.recv()
                if isinstance(message, bytes):
                    yield _binary_event(message)
                    continue
                event = json.loads(message)
                if event["data"].get("prompt_id", prompt) != prompt:
                    continue
                yield event
                if event["type"] in (
                    "execution_success",
                    "execution_error",
                    "execution_interrupted",
                ):
                    return
        finally:
            link.close()

    def run(
        self, graph: Graph, on_progress: Callable[[str, int, int], None] | None = None
    ) -> dict[str, Any]:
        """Run ``graph`` to its end; returns the outputs by node id.

        Raises:
            Refused: the graph was not accepted.
            HostError: a node failed, or the run was interrupted.
        """
        outputs: dict[str, Any] = {}
        for event in self.events(graph):
            data = event["data"]
            if event["type"] == "progress" and on_progress is not None:
                on_progress(data["node"], data["value"], data["max"])
            elif event["type"] == "executed":
                outputs[data["node"]] = data["output"]
            elif event["type"] == "execution_error":
                raise HostError(f"{data['node_type']}: {data['exception_message'].strip()}")
            elif event["type"] == "execution_interrupted":
                raise HostError("interrupted")
        return outputs

    def path(self, saved: Mapping[str, str]) -> Path:
        """Where a saved result lies."""
        return self.output / saved["subfolder"] / saved["filename"]


def _binary_event(message: bytes) -> Event:
    """A preview (its file), or text for a node."""
    kind, size = struct.unpack(">II", message[:8])
    if kind != TEXT_EVENT:
        return {"type": "preview", "data": {"image": message[8:]}}
    node, text = message[8 : 8 + size], message[8 + size :]
    return {"type": "text", "data": {"node": node.decode(), "text": text.decode()}}


def node_of(graph: Graph, class_type: str) -> str:
    """Id of the node of a class."""
    return next(i for i, node in graph.items() if node["class_type"] == class_type)
