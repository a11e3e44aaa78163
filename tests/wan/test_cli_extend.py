"""``--extend-prompt``: one request to the endpoint that was named, and none without."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import av
import pytest
from wanexperts.wan.cli import main

PROMPT = "一个红色圆形在白色背景上向左移动"


class Chat:
    """An OpenAI-compatible endpoint; ``answer`` is its next answer, ``asked`` what it was asked."""

    def __init__(self) -> None:
        self.status, self.asked = 200, list[tuple[str, dict[str, str], Any]]()
        self.answer: Any = {
            "choices": [{"message": {"content": "<think>hm\n</think>\n a red circle\nmoves left "}}]
        }
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                chat.asked.append((self.path, dict(self.headers), body))
                data = json.dumps(chat.answer).encode()
                self.send_response(chat.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"


@pytest.fixture
def chat() -> Iterator[Chat]:
    made = Chat()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


def generate(folder: Path, *options: str, prompt: str = PROMPT) -> int:
    arguments = [
        "generate",
        "--prompt",
        prompt,
        "--out",
        str(folder / "a.mp4"),
        "--steps",
        "1",
        "--frames",
        "1",
    ]
    arguments += ["--height", "16", "--width", "16", "--shift", "2"]
    return main([*arguments, *options])


def test_the_clip_is_made_of_what_the_model_wrote_and_says_so(
    tmp_path: Path, chat: Chat, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("CHAT_KEY", "secret")
    options = [
        "--extend-prompt",
        chat.url,
        "--extend-model",
        "small",
        "--extend-key-env",
        "CHAT_KEY",
    ]
    assert generate(tmp_path, *options) == 0
    ((path, headers, body),) = chat.asked
    assert (path, headers["Authorization"], body["model"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        "small",
    )
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == PROMPT
    told = capsys.readouterr()
    assert "prompt: a red circle moves left" in told.err.splitlines()
    assert "secret" not in told.out + told.err
    with av.open(str(tmp_path / "a.mp4")) as container:
        made = json.loads(container.metadata["wan"])
    assert made["prompt"] == "a red circle moves left"
    assert "secret" not in json.dumps(made)


def test_nothing_is_asked_by_default_or_before_bad_input_is_refused(
    tmp_path: Path, chat: Chat
) -> None:
    assert generate(tmp_path) == 0
    options = ["--extend-prompt", chat.url, "--extend-model", "small"]
    assert generate(tmp_path, *options, "--frames", "80") == 2
    assert generate(tmp_path, *options, prompt=" ") == 2
    assert chat.asked == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--extend-model", "small"], "--extend-prompt is missing"),
        (["--extend-prompt", "URL"], "--extend-model is missing"),
        (["--extend-prompt", "URL", "--extend-model", "a", "--extend-key-env", "NO_SUCH_KEY"],
         "the environment variable NO_SUCH_KEY is empty"),
        (["--extend-prompt", "127.0.0.1:1", "--extend-model", "a"], "127.0.0.1:1 does not answer"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(
    tmp_path: Path, chat: Chat, capsys, options: list[str], words: str
) -> None:
    assert generate(tmp_path, *(chat.url if word == "URL" else word for word in options)) == 2
    assert words in capsys.readouterr().err
    assert chat.asked == []


@pytest.mark.parametrize(
    ("status", "answer", "words"),
    [
        (
            404,
            {"error": {"message": "model 'small' not found"}},
            "refuses (status 404): model 'small' not found",
        ),
        (302, {}, "refuses (status 302): check its URL, model and key"),
        (
            200,
            {"choices": [{"message": {"content": None}}]},
            "does not answer as an OpenAI-compatible",
        ),
        (200, {"choices": []}, "does not answer as an OpenAI-compatible chat"),
        (200, {"choices": [{"message": {"content": " "}}]}, "answered with 0 letters"),
        (200, {"choices": [{"message": {"content": "a" * 4001}}]}, "answered with 4001 letters"),
    ],
)
def test_answers_that_are_no_prompt_are_refused(
    tmp_path: Path, chat: Chat, capsys, status: int, answer: Any, words: str
) -> None:
    chat.status, chat.answer = status, answer
    assert generate(tmp_path, "--extend-prompt", chat.url, "--extend-model", "small") == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
