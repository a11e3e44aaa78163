"""The websocket client against RFC 6455 byte by byte, and against an implementation of others."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from wanexperts.wan.queue import websocket as W


@pytest.fixture
def pair() -> Iterator[tuple[W.WebSocket, socket.socket]]:
    ours, theirs = socket.socketpair()
    theirs.settimeout(5)
    link = W.WebSocket(ours)
    yield link, theirs
    link.close()
    theirs.close()


def frame(opcode: int, payload: bytes, final: bool = True, bits: int = 0) -> bytes:
    """As a server sends it: not masked."""
    size = len(payload)
    head = bytes([(0x80 if final else 0) | bits | opcode])
    if size < 126:
        return head + bytes([size]) + payload
    wide = size.to_bytes(2, "big") if size < 65536 else size.to_bytes(8, "big")
    return head + bytes([126 if len(wide) == 2 else 127]) + wide + payload


def opened(data: bytes) -> tuple[int, bytes]:
    """Opcode and payload of a short frame of a client, which must be masked."""
    assert data[1] & 0x80
    size, mask = data[1] & 0x7F, data[2:6]
    payload = bytes(b ^ mask[i % 4] for i, b in enumerate(data[6 : 6 + size]))
    assert len(data) == 6 + size
    return data[0], payload


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        # The examples of RFC 6455, section 5.7.
        (bytes.fromhex("810548656c6c6f"), "Hello"),
        (bytes.fromhex("010348656c 80026c6f"), "Hello"),
        (frame(W.BINARY, bytes(256)), bytes(256)),
        (bytes.fromhex("827f0000000000010000") + bytes(65536), bytes(65536)),
        (frame(W.TEXT, "圆".encode()[:2], final=False) + frame(0, "圆".encode()[2:]), "圆"),
        (frame(W.TEXT, b""), ""),
    ],
)
def test_messages_arrive_whole_however_they_are_cut(
    pair, data: bytes, payload: str | bytes
) -> None:
    link, server = pair
    for cut in (1, 3, len(data)) if len(data) < 300 else (4096,):

        def send(cut: int = cut) -> None:
            for start in range(0, len(data), cut):
                server.sendall(data[start : start + cut])

        sender = threading.Thread(target=send)
        sender.start()
        assert link.receive(5) == payload
        sender.join()


def test_the_masked_example_of_the_standard() -> None:
    wanted = bytes.fromhex("818537fa213d7f9f4d5158")
    assert W.encode(W.Frame(W.TEXT, b"Hello"), bytes.fromhex("37fa213d")) == wanted


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_lengths_are_written_as_the_standard_says(size: int) -> None:
    data = W.encode(W.Frame(W.BINARY, bytes(size)), b"\0\0\0\0")
    marked = bytearray(data)
    marked[1] &= 0x7F
    start = 2 if size < 126 else 4 if size < 65536 else 10
    del marked[start : start + 4]
    assert bytes(marked) == frame(W.BINARY, bytes(size))


def test_a_ping_within_a_message_is_answered_at_once(pair) -> None:
    link, server = pair
    server.sendall(frame(W.TEXT, b"a", final=False) + frame(W.PING, b"now") + frame(W.PONG, b""))
    assert link.receive(0.05) is None
    assert opened(server.recv(100)) == (0x80 | W.PONG, b"now")
    server.sendall(frame(0, b"b"))
    assert link.receive(5) == "ab"


def test_nothing_in_time_is_none_and_nothing_is_lost(pair) -> None:
    link, server = pair
    data = frame(W.TEXT, b"slow")
    server.sendall(data[:3])
    assert link.receive(0.02) is None
    server.sendall(data[3:])
    assert link.receive(5) == "slow"


def test_a_close_is_answered_and_told(pair) -> None:
    link, server = pair
    server.sendall(frame(W.CLOSE, (1001).to_bytes(2, "big") + b"bye"))
    with pytest.raises(ConnectionError, match=r"closed the websocket \(code 1001\)"):
        link.receive(5)
    assert opened(server.recv(100)) == (0x80 | W.CLOSE, (1001).to_bytes(2, "big"))
    assert server.recv(100) == b""


def test_we_say_goodbye_once(pair) -> None:
    link, server = pair
    link.close()
    link.close()
    assert opened(server.recv(100)) == (0x80 | W.CLOSE, (1000).to_bytes(2, "big"))
    assert server.recv(100) == b""


def test_a_server_that_is_gone_is_an_error(pair) -> None:
    link, server = pair
    server.close()
    with pytest.raises(ConnectionError):
        link.receive(5)


@pytest.mark.parametrize(
    ("data", "words", "code"),
    [
        (frame(3, b""), "unknown kind", 1002),
        (frame(W.TEXT, b"", bits=0x40), "unknown kind", 1002),
        (bytes([0x81, 0x81, 1, 2, 3, 4, 5]), "masked", 1002),
        (frame(W.PING, bytes(126)), "control frame", 1002),
        (frame(W.CLOSE, b"", final=False), "control frame", 1002),
        (frame(0, b"a"), "mixed up", 1002),
        (frame(W.TEXT, b"a", final=False) + frame(W.TEXT, b"b"), "mixed up", 1002),
        (frame(W.TEXT, b"\xff"), "not UTF-8", 1007),
        (bytes([0x82, 127]) + (W.LARGEST_MESSAGE + 1).to_bytes(8, "big"), "at most", 1009),
    ],
)
def test_what_the_standard_forbids_ends_the_link(pair, data: bytes, words: str, code: int) -> None:
    link, server = pair
    server.sendall(data)
    with pytest.raises(ConnectionError, match=words):
        link.receive(5)
    assert opened(server.recv(100)) == (0x80 | W.CLOSE, code.to_bytes(2, "big"))


def test_a_message_without_end_is_cut_off(pair, monkeypatch) -> None:
    link, server = pair
    monkeypatch.setattr(W, "LARGEST_MESSAGE", 1000)
    server.sendall(frame(W.TEXT, bytes(600), final=False) + frame(0, bytes(600), final=False))
    with pytest.raises(ConnectionError, match="without end"):
        link.receive(5)


GOOD = (
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: WebSocket\r\nconnection: keep-alive, Upgrade\r\n"
    "Sec-WebSocket-Accept: {accept}\r\n\r\n"
)


def greeted(answer: str, after: bytes = b"", login: str | None = None) -> tuple[W.WebSocket, str]:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    asked = []

    def serve() -> None:
        head = theirs.recv(4096).decode()
        asked.append(head)
        key = head.split("Sec-WebSocket-Key: ")[1].split("\r\n")[0]
        theirs.sendall(answer.replace("{accept}", accept_of(key)).encode() + after)
        theirs.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return W.greet(ours, "host:1", "/ws?clientId=a", login), asked[0]
    finally:
        thread.join(5)
        theirs.close()


def accept_of(key: str) -> str:
    """The other side's sum, by an implementation that is not ours."""
    websocket = pytest.importorskip("websocket._handshake")
    import base64
    import hashlib

    value = f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()
    accept = base64.b64encode(hashlib.sha1(value).digest()).decode()
    fields = {"upgrade": "websocket", "connection": "upgrade", "sec-websocket-accept": accept}
    assert websocket._validate(fields, key, None)[0]
    return accept


def test_a_greeting_names_what_is_needed_and_keeps_what_came_after_it() -> None:
    link, asked = greeted(GOOD, frame(W.TEXT, b"first"), "Bearer x")
    lines = asked.split("\r\n")
    assert lines[0] == "GET /ws?clientId=a HTTP/1.1"
    assert {
        "Host: host:1",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Authorization: Bearer x",
    } <= set(lines)
    assert link.receive(5) == "first"
    link.close()


@pytest.mark.parametrize(
    "answer",
    [
        "HTTP/1.1 200 OK\r\n\r\n",
        "",
        GOOD.replace("101", "403"),
        GOOD.replace("{accept}", "AAAA"),
        GOOD.replace("Upgrade: WebSocket", "Upgrade: h2c"),
        GOOD.replace("\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"),
        "x" * 100_000,
    ],
)
def test_what_is_no_websocket_is_refused(answer: str) -> None:
    with pytest.raises((ConnectionError, OSError)):
        greeted(answer)
