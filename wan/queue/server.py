"""One ComfyUI server over HTTP: what it knows, what it has queued, what it has made."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ..files import shown
from ..video import whole_file
from .address import Address
from .websocket import WebSocket, greet

TIMEOUT = 30.0
"""Seconds; a server that loads weights answers late."""
CHUNK = 1 << 20
AGAIN = (408, 425, 429)
"""Statuses below 500 that ask to come back later."""

Graph = dict[str, dict[str, Any]]


class Unavailable(ConnectionError):
    """The server does not answer now; it may later."""


class Refused(ValueError):
    """The server does not want what was asked; the sentence says why."""


class Missing(Refused):
    """The server has not what was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A file on a server: ``folder`` is ``output``, ``temp`` or ``input``, ``node`` who made it."""

    node: str
    name: str
    subfolder: str
    folder: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What a server says of a prompt that is over.

    Attributes:
        problem: why it failed, one sentence; empty if it did not.
        files: what it saved; previews only if there is nothing else.
        texts: node -> text shown on it.
        seconds: of work; None if the server does not say.
    """

    problem: str
    files: tuple[Saved, ...]
    texts: Mapping[str, str]
    seconds: float | None


class Server:
    """The routes of a server. All methods raise :class:`Unavailable` if it does not answer, and
    :class:`Refused` if it does not want to.
    """

    def __init__(self, address: Address, *, timeout: float = TIMEOUT) -> None:
        """``timeout`` in seconds, of each answer's next bytes."""
        self.address = address
        self._timeout = timeout

    def nodes(self) -> dict[str, Any]:
        """The schema of every node, by class."""
        info = self._json("GET", "/object_info")
        if not isinstance(info, dict) or not info:
            raise Refused(f"{self.address} is no ComfyUI; check the address")
        return info

    def queued(self) -> set[str]:
        """Ids of all prompts that run or wait."""
        told = self._json("GET", "/queue")
        return {
            str(entry[1]) for part in ("queue_running", "queue_pending") for entry in told[part]
        }

    def ended(self, prompt: str) -> Ended | None:
        """What became of a prompt; None while it is not over, or unknown."""
        entry = self._json("GET", f"/history/{prompt}").get(prompt)
        return None if entry is None else _read_ended(entry)

    def submit(
        self, graph: Graph, prompt: str, client: str, workflow: Mapping[str, Any] | None = None
    ) -> None:
        """Queue ``graph`` under the id ``prompt``.

        Args:
            graph: in API format.
            prompt: a UUID.
            client: whose websocket hears of it.
            workflow: the same as a UI file, which ComfyUI writes into what it saves.

        Raises:
            Refused: a node's inputs are not right; nothing was queued.
        """
        body: dict[str, Any] = {"prompt": graph, "prompt_id": prompt, "client_id": client}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        answer = self._json("POST", "/prompt", body, lambda told: in_words(told, graph))
        if answer.get("node_errors"):  # another output of the graph is good
            self.cancel([prompt])
            raise Refused(in_words(answer, graph))

    def cancel(self, prompts: Iterable[str]) -> None:
        """Take prompts out of the queue and end those that run."""
        prompts = list(prompts)
        if prompts:
            self._json("POST", "/queue", {"delete": prompts})
        for prompt in prompts:
            self._json("POST", "/interrupt", {"prompt_id": prompt})

    def download(self, saved: Saved, path: Path) -> int:
        """Write a file of the server to ``path``, which appears when it is whole; returns its bytes.

        Raises:
            Missing: it is not there any more.
            OSError: ``path`` cannot be written.
        """
        query = {"filename": saved.name, "subfolder": saved.subfolder, "type": saved.folder}
        with (
            whole_file(path) as partial,
            partial.open("wb") as file,
            self._answer("GET", f"/view?{urlencode(query)}") as answer,
        ):
            wanted, size = answer.length, 0
            while data := _read(self.address, answer, CHUNK):
                size += file.write(data)
            if wanted is not None and size != wanted:
                raise Unavailable(f"{self.address} broke off after {size} of {wanted} bytes")
        return size

    def listen(self, client: str) -> WebSocket:
        """The events of ``client``'s prompts; raises OSError if there is no websocket."""
        address = self.address
        path = f"{address.base}/ws?{urlencode({'clientId': client})}"
        link = address.socket(self._timeout)
        return greet(link, address.netloc, path, address.authorization)

    def _json(
        self, method: str, path: str, body: object = None,
        explain: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> Any:  # fmt: skip
        with self._answer(method, path, body, explain) as answer:
            data = _read(self.address, answer)
        try:
            return json.loads(data) if data.strip() else {}
        except ValueError as error:
            raise Refused(f"{self.address}{path} is no ComfyUI; check the address") from error

    @contextmanager
    def _answer(
        self, method: str, path: str, body: object = None,
        explain: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:  # fmt: skip
        """An answer whose status is good."""
        headers = {"Accept": "*/*"}
        if self.address.authorization:
            headers["Authorization"] = self.address.authorization
        data = None if body is None else json.dumps(body).encode()
        if data is not None:
            headers["Content-Type"] = "application/json"
        link = self.address.http(self._timeout)
        try:
            try:
                link.request(method, f"{self.address.base}{path}", data, headers)
                answer = link.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"{self.address} does not answer ({_why(error)})") from error
            if answer.status != 200:
                raise self._refusal(path, answer, explain)
            yield answer
        finally:
            link.close()

    def _refusal(
        self, path: str, answer: http.client.HTTPResponse,
        explain: Callable[[Mapping[str, Any]], str] | None,
    ) -> Exception:  # fmt: skip
        status, text = answer.status, _read(self.address, answer)
        if status >= 500 or status in AGAIN:
            return Unavailable(f"{self.address} cannot answer now (status {status})")
        if status in (401, 403, 407):
            return Refused(
                f"{self.address} wants a login (status {status}); give it by --auth-env or in the URL"
            )
        if 300 <= status < 400:
            target = shown(answer.headers.get("Location", "elsewhere"))
            return Refused(f"{self.address} sends on to {target}; give that address")
        if status == 404:
            return Missing(f"{self.address} has no {shown(path)}")
        try:
            told = json.loads(text)
            if explain is not None and isinstance(told, dict):
                return Refused(explain(told))
        except ValueError:
            pass
        return Refused(f"{self.address} refuses {shown(path)} (status {status})")


def in_words(answer: Mapping[str, Any], graph: Graph) -> str:
    """What a server has against a graph, one sentence."""
    told = []
    for key, node in (answer.get("node_errors") or {}).items():
        title = graph.get(key, {}).get("_meta", {}).get("title") or node.get("class_type", "")
        for error in node.get("errors", []):
            said = [error.get("message", ""), error.get("details", "")]
            told.append(f"node {key} ({title}): {': '.join(filter(None, said))}")
    error = answer.get("error") or {}
    if not told and isinstance(error, str):
        told = [error]
    elif not told:
        told = [": ".join(filter(None, [error.get("message", ""), error.get("details", "")]))]
    return shown("; ".join(filter(None, told)) or "the server gives no reason")


def _read_ended(entry: Mapping[str, Any]) -> Ended:
    status = entry.get("status") or {}
    messages = [(str(message[0]), message[1]) for message in status.get("messages") or []]
    times = {kind: data.get("timestamp") for kind, data in messages}
    start, end = times.get("execution_start"), times.get("execution_success")
    outputs = entry.get("outputs") or {}
    found = list(_files(outputs))
    kept = [saved for saved in found if saved.folder == "output"]
    texts = {
        str(node): "\n".join(map(str, told["text"]))
        for node, told in outputs.items()
        if isinstance(told.get("text"), list)
    }
    return Ended(
        problem="" if status.get("status_str", "success") == "success" else _problem(messages),
        files=tuple(kept or found),
        texts=texts,
        seconds=(end - start) / 1000 if start and end else None,
    )


def _files(outputs: Mapping[str, Any]) -> Iterator[Saved]:
    """Every file that nodes showed, whatever they call the list; each once."""
    seen = set()
    for node, told in outputs.items():
        for entries in told.values():
            for entry in entries if isinstance(entries, list) else ():
                if not (isinstance(entry, dict) and entry.get("filename")):
                    continue
                saved = Saved(
                    node=str(node),
                    name=str(entry["filename"]),
                    subfolder=str(entry.get("subfolder") or ""),
                    folder=str(entry.get("type") or "output"),
                )
                place = (saved.folder, saved.subfolder, saved.name)
                if place not in seen:
                    seen.add(place)
                    yield saved


def _problem(messages: list[tuple[str, Mapping[str, Any]]]) -> str:
    for kind, data in messages:
        if kind == "execution_error":
            where = f"node {data.get('node_id')} ({data.get('node_type')})"
            return shown(f"{where}: {str(data.get('exception_message', '')).strip()}")
        if kind == "execution_interrupted":
            return "it was interrupted on the server"
    return "the server says that it failed, not why"


def _read(address: Address, answer: http.client.HTTPResponse, size: int | None = None) -> bytes:
    try:
        return answer.read(size)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{address} broke off ({_why(error)})") from error


def _why(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(reason).lower()
