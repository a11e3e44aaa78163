"""A ComfyUI that runs nothing: routes, queue, history and websocket as the real one has them, and its mishaps."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

INFO: dict[str, Any] = {
    "Text": {
        "input": {"required": {"clip": ["CLIP"], "text": ["STRING", {"multiline": True}]}},
        "input_order": {"required": ["clip", "text"]},
    },
    "Sampler": {
        "input": {
            "required": {
                "positive": ["CONDITIONING"],
                "negative": ["CONDITIONING"],
                "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
                "steps": ["INT", {"min": 1, "max": 100, "default": 20}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 30.0}],
                "sampler_name": [["euler", "heun"], {}],
            },
            "optional": {"loop": ["BOOLEAN", {"default": False}]},
        },
        "input_order": {
            "required": ["positive", "negative", "seed", "steps", "cfg", "sampler_name"],
            "optional": ["loop"],
        },
    },
    "Save": {
        "input": {"required": {"samples": ["LATENT"], "prefix": ["STRING", {"default": "clip"}]}},
        "input_order": {"required": ["samples", "prefix"]},
    },
}


def graph() -> dict[str, Any]:
    """A prompt for :class:`FakeComfy`."""

    def node(kind: str, title: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}}

    return {
        "1": node("Text", "Good", clip=["9", 0], text="a red circle"),
        "2": node("Text", "Bad", clip=["9", 0], text="blur"),
        "3": node("Sampler", "Run it", positive=["1", 0], negative=["2", 0], seed=5, steps=3,
                  cfg=4.0, sampler_name="euler"),
        "4": node("Save", "Keep", samples=["3", 0], prefix="clip"),
    }  # fmt: skip


def result(prompt: dict[str, Any]) -> bytes:
    """What the file of a prompt holds: all that made it."""
    inputs = prompt["3"]["inputs"]
    return json.dumps([prompt["1"]["inputs"]["text"], inputs["seed"], inputs["steps"]]).encode()


class FakeComfy:
    """``with FakeComfy() as server: server.url``. Attributes are its mishaps; lists what it was asked."""

    def __init__(
        self, *, port: int = 0, base: str = "", login: str = "", seconds: float = 0.05
    ) -> None:
        self.base, self.login, self.seconds = base, login, seconds
        self.sockets = True  # whether there is a websocket at all
        self.silent = False  # a websocket that never says anything
        self.unwell = 0  # so many of the next requests are answered by 503
        self.cut = 0  # so many of the next downloads break off
        self.deaf = 0  # so many of the next prompts are queued, but the answer is lost
        self.refuses: set[int] = set()  # seeds
        self.fails: set[int] = set()  # seeds
        self.partial = False  # another output of the graph is not good
        self.info = INFO
        self.posted: list[dict[str, Any]] = []
        self.ran: list[int] = []
        self.fetched: list[str] = []
        self.cancelled: list[str] = []
        self.hold = threading.Event()  # prompts end only when it is set
        self.hold.set()
        self._pending: list[dict[str, Any]] = []
        self._running: dict[str, Any] | None = None
        self._history: dict[str, Any] = {}
        self._files: dict[str, bytes] = {}
        self._links: dict[str, Any] = {}
        self._stop = threading.Event()
        self._interrupt = threading.Event()
        self._lock = threading.RLock()
        fake = self

        class Handler(_Handler):
            comfy = fake

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Links break on purpose here."""

        self._http = Quiet(("127.0.0.1", port), Handler)
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{base}"

    def __enter__(self) -> FakeComfy:
        self._threads = [
            threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}),
            threading.Thread(target=self._work),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Gone, with its queue, in the middle of whatever it does."""
        self._stop.set()
        self.hold.set()
        self._http.shutdown()
        self._http.server_close()
        self.drop()
        for thread in self._threads:
            thread.join(5)

    def drop(self) -> None:
        """Break every websocket."""
        for link in list(self._links.values()):
            with suppress(OSError):
                link.shutdown(2)

    def forget(self) -> None:
        """Lose what a restart loses, at once."""
        with self._lock:
            self._pending.clear()
            self._history.clear()
            self._interrupt.set()
            self._running = None

    @property
    def queued(self) -> list[str]:
        """Ids of what runs and waits."""
        with self._lock:
            running = [self._running] if self._running else []
            return [entry["prompt_id"] for entry in (*running, *self._pending)]

    def submit(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """POST /prompt."""
        self.posted.append(body)
        seed = body["prompt"]["3"]["inputs"]["seed"]
        wrong = {"message": "Value not in list", "details": "sampler_name: 'x'", "type": "y"}
        errors = {"3": {"errors": [wrong], "class_type": "Sampler"}}
        if seed in self.refuses:
            return 400, {
                "error": {"message": "Prompt outputs failed validation"},
                "node_errors": errors,
            }
        with self._lock:
            self._pending.append(body)
        return 200, {"prompt_id": body["prompt_id"], "node_errors": errors if self.partial else {}}

    def cancel(self, ids: list[str]) -> None:
        """POST /queue."""
        self.cancelled += ids
        with self._lock:
            self._pending = [entry for entry in self._pending if entry["prompt_id"] not in ids]

    def interrupt(self, prompt: str) -> None:
        """POST /interrupt."""
        with self._lock:
            if self._running and self._running["prompt_id"] == prompt:
                self._interrupt.set()

    def _work(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                if self._pending:
                    self._running = self._pending.pop(0)
                    self._interrupt.clear()
            if self._running is None:
                time.sleep(0.005)
                continue
            self._execute(self._running)

    def _execute(self, entry: dict[str, Any]) -> None:
        told = {"prompt_id": entry["prompt_id"]}
        began = int(time.time() * 1000)
        for step in range(1, 4):
            time.sleep(self.seconds / 3)
            self._send(entry, "progress", {**told, "node": "3", "value": step, "max": 3})
        while not (self.hold.wait(0.01) or self._interrupt.is_set()):
            pass
        if self._stop.is_set() or self._running is None:
            return
        seed = entry["prompt"]["3"]["inputs"]["seed"]
        kind = "execution_error" if seed in self.fails else "execution_success"
        kind = "execution_interrupted" if self._interrupt.is_set() else kind
        data = {**told, "timestamp": began + 1500, "node_id": "3", "node_type": "Sampler",
                "exception_message": "out of memory\n"}  # fmt: skip
        self._send(entry, kind, data)
        time.sleep(0.01)  # the real one writes its history after the event, too
        outputs = {}
        if kind == "execution_success":
            self.ran.append(seed)
            name = f"clip_{len(self._files):05}_.mp4"
            self._files[name] = result(entry["prompt"])
            saved = {"filename": name, "subfolder": "video", "type": "output"}
            preview = {"filename": "preview.png", "subfolder": "", "type": "temp"}
            outputs = {
                "4": {"images": [saved], "animated": [True]},
                "3": {"images": [preview], "text": ["a plan"]},
            }
        with self._lock:
            good = kind == "execution_success"
            start = ["execution_start", {**told, "timestamp": began}]
            self._history[entry["prompt_id"]] = {
                "prompt": [0, entry["prompt_id"], entry["prompt"], {}, ["4"]],
                "outputs": outputs,
                "status": {"status_str": "success" if good else "error", "completed": good,
                           "messages": [start, [kind, data]]},
            }  # fmt: skip
            self._running = None

    def _send(self, entry: dict[str, Any], kind: str, data: dict[str, Any]) -> None:
        link = self._links.get(entry.get("client_id", ""))
        if link is None or self.silent:
            return
        with suppress(OSError):
            for payload, opcode in (
                (b"\0\0\0\1picture", 2),
                (json.dumps({"type": kind, "data": data}).encode(), 1),
            ):
                size = (
                    bytes([len(payload)])
                    if len(payload) < 126
                    else b"\x7e" + len(payload).to_bytes(2, "big")
                )
                link.sendall(bytes([0x80 | opcode]) + size + payload)


class _Handler(BaseHTTPRequestHandler):
    comfy: FakeComfy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        comfy, path = self.comfy, self._path()
        if path is None:
            return
        if path == "/ws":
            self._socket()
        elif path == "/object_info":
            self._answer(200, comfy.info)
        elif path == "/queue":
            rows = [[0, prompt, {}, {}, []] for prompt in comfy.queued]
            self._answer(200, {"queue_running": rows[:1], "queue_pending": rows[1:]})
        elif path.startswith("/history/"):
            prompt = path.rpartition("/")[2]
            entry = comfy._history.get(prompt)
            self._answer(200, {prompt: entry} if entry else {})
        elif path == "/view":
            self._view()
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        comfy, path = self.comfy, self._path()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if path is None:
            return
        if path == "/prompt":
            status, told = comfy.submit(body)
            if comfy.deaf:
                comfy.deaf -= 1
                self.close_connection = True
                return
            self._answer(status, told)
            return
        if path == "/queue":
            comfy.cancel(body["delete"])
        elif path == "/interrupt":
            comfy.interrupt(body["prompt_id"])
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _path(self) -> str | None:
        comfy = self.comfy
        path = urlsplit(self.path).path
        if comfy.unwell:
            comfy.unwell -= 1
            self._answer(503, {})
        elif comfy.login and self.headers.get("Authorization") != comfy.login:
            self._answer(401, {})
        elif not path.startswith(f"{comfy.base}/"):
            self._answer(404, {})
        else:
            return path[len(comfy.base) :]
        return None

    def _view(self) -> None:
        name = parse_qs(urlsplit(self.path).query)["filename"][0]
        data = self.comfy._files.get(name)
        if data is None:
            self._answer(404, {})
            return
        self.comfy.fetched.append(name)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.comfy.cut:
            self.comfy.cut -= 1
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)

    def _socket(self) -> None:
        comfy = self.comfy
        if not comfy.sockets:
            self._answer(404, {})
            return
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header(
            "Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        )
        self.end_headers()
        client = parse_qs(urlsplit(self.path).query)["clientId"][0]
        comfy._links[client] = self.connection
        while self.connection.recv(4096):
            pass
        comfy._links.pop(client, None)
        self.close_connection = True

    def _answer(self, status: int, told: Any) -> None:
        data = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
