"""A websocket's client side (RFC 6455), as far as it takes to hear a server: messages come, pings are answered."""

from __future__ import annotations

import base64
import hashlib
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL, PROTOCOL_ERROR, BAD_TEXT, TOO_LARGE = 1000, 1002, 1007, 1009
"""Codes of a closing frame."""
LARGEST_MESSAGE = 64 << 20
"""Bytes; ComfyUI's own limit the other way round is 100 MB, its messages are previews of some KB."""
LARGEST_CONTROL = 125
LARGEST_GREETING = 64 << 10
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CHUNK = 64 << 10


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame; ``final`` says that no other continues its message."""

    opcode: int
    payload: bytes
    final: bool = True


class Broken(ConnectionError):
    """The other side does not keep to the protocol; ``code`` is what it is told."""

    def __init__(self, message: str, code: int = PROTOCOL_ERROR) -> None:
        """``message`` is a sentence."""
        super().__init__(message)
        self.code = code


def encode(frame: Frame, mask: bytes) -> bytes:
    """The bytes of a frame from a client, whose payload is masked by four random bytes."""
    size = len(frame.payload)
    head = bytearray([frame.opcode | (0x80 if frame.final else 0)])
    if size < 126:
        head.append(0x80 | size)
    elif size < 1 << 16:
        head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes(head) + mask + masked(frame.payload, mask)


def masked(payload: bytes, mask: bytes) -> bytes:
    """``payload`` with each byte xored by ``mask`` in turn; the way back is the same."""
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    mixed = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
    return mixed.to_bytes(len(payload), "big")


def take_frame(buffer: bytearray, largest: int = LARGEST_MESSAGE) -> Frame | None:
    """Take the first frame of a server out of ``buffer``; None while it is not whole.

    Raises:
        Broken: no frame of a server, or larger than ``largest`` bytes.
    """
    if len(buffer) < 2:
        return None
    first, second = buffer[0], buffer[1]
    opcode, final, size = first & 0x0F, bool(first & 0x80), second & 0x7F
    if first & 0x70 or opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
        raise Broken(f"the websocket sent a frame of an unknown kind ({first:#04x})")
    if second & 0x80:
        raise Broken("the websocket sent a masked frame, which only a client may")
    if opcode >= CLOSE and (size > LARGEST_CONTROL or not final):
        raise Broken("the websocket sent a control frame that is too long or in parts")
    start = {126: 4, 127: 10}.get(size, 2)
    if len(buffer) < start:
        return None
    if start > 2:
        size = int.from_bytes(buffer[2:start], "big")
    if size > largest:
        raise Broken(f"the websocket sent {size} bytes at once; at most {largest} are", TOO_LARGE)
    if len(buffer) < start + size:
        return None
    payload = bytes(buffer[start : start + size])
    del buffer[: start + size]
    return Frame(opcode, payload, final)


class WebSocket:
    """A websocket over a connected socket, from the greeting on; used by one thread."""

    def __init__(self, link: socket.socket, received: bytes = b"") -> None:
        """``received`` came after the greeting already."""
        self._link = link
        self._buffer = bytearray(received)
        self._parts: list[bytes] = []
        self._kind = CONTINUATION
        self._open = True

    def receive(self, timeout: float) -> str | bytes | None:
        """The next message: text, or bytes; None if none is whole within ``timeout`` seconds.

        Raises:
            ConnectionError: the other side closed, went away or broke the protocol.
        """
        end = time.monotonic() + timeout
        try:
            while True:
                while (frame := take_frame(self._buffer)) is not None:
                    message = self._take(frame)
                    if message is not None:
                        return message
                if not self._read(end - time.monotonic()):
                    return None
        except Broken as error:
            self.close(error.code)
            raise
        except OSError as error:
            self.close()
            raise ConnectionError(f"the websocket broke off ({error})") from error

    def close(self, code: int = NORMAL) -> None:
        """Say goodbye, if that is still possible, and let the connection go."""
        if self._open:
            self._open = False
            with suppress(OSError):
                self._send(Frame(CLOSE, code.to_bytes(2, "big")))
        self._link.close()

    def _read(self, seconds: float) -> bool:
        """Whether something came in time."""
        if seconds <= 0:
            return False
        self._link.settimeout(seconds)
        try:
            data = self._link.recv(_CHUNK)
        except TimeoutError:
            return False
        if not data:
            raise ConnectionError("the server is gone")
        self._buffer += data
        return True

    def _take(self, frame: Frame) -> str | bytes | None:
        """A message, if this frame ends one."""
        if frame.opcode == PING:
            self._send(Frame(PONG, frame.payload))
        elif frame.opcode == CLOSE:
            told = int.from_bytes(frame.payload[:2], "big") or NORMAL
            self.close(told)
            raise ConnectionError(f"the server closed the websocket (code {told})")
        if frame.opcode >= CLOSE:
            return None
        if (frame.opcode == CONTINUATION) != bool(self._kind):
            raise Broken("the websocket mixed up the parts of its messages")
        self._kind = frame.opcode or self._kind
        self._parts.append(frame.payload)
        if sum(map(len, self._parts)) > LARGEST_MESSAGE:
            raise Broken("the websocket sent a message without end", TOO_LARGE)
        if not frame.final:
            return None
        kind, data = self._kind, b"".join(self._parts)
        self._kind, self._parts = CONTINUATION, []
        if kind == BINARY:
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise Broken("the websocket sent text that is not UTF-8", BAD_TEXT) from error

    def _send(self, frame: Frame) -> None:
        self._link.sendall(encode(frame, secrets.token_bytes(4)))


def greet(link: socket.socket, host: str, path: str, authorization: str | None = None) -> WebSocket:
    """Turn a connected socket into a websocket.

    Args:
        link: has a timeout; it is closed if this fails.
        host: what the header ``Host`` says.
        path: with its query.
        authorization: the header of this name.

    Raises:
        ConnectionError: the other side is no websocket.
        OSError: it went away.
    """
    key = base64.b64encode(secrets.token_bytes(16)).decode()
    lines = [
        f"GET {path} HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13",
    ]  # fmt: skip
    if authorization:
        lines.append(f"Authorization: {authorization}")
    try:
        link.sendall("\r\n".join([*lines, "", ""]).encode())
        head, rest = _read_greeting(link)
        _check_greeting(head, key)
    except BaseException:
        link.close()
        raise
    return WebSocket(link, rest)


def _read_greeting(link: socket.socket) -> tuple[str, bytes]:
    """The head of the answer and what came after it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = link.recv(_CHUNK)
        if not more or len(data) > LARGEST_GREETING:
            raise ConnectionError("the server does not greet as a websocket")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.decode("latin-1"), rest


def _check_greeting(head: str, key: str) -> None:
    status, *lines = head.split("\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in
              (line.partition(":") for line in lines)}  # fmt: skip
    wanted = base64.b64encode(hashlib.sha1(f"{key}{_GUID}".encode()).digest()).decode()
    if (
        status.split(" ")[1:2] != ["101"]
        or fields.get("upgrade", "").lower() != "websocket"
        or "upgrade" not in fields.get("connection", "").lower()
        or fields.get("sec-websocket-accept") != wanted
        or "sec-websocket-extensions" in fields
    ):
        raise ConnectionError(f"the server does not open a websocket ({status.strip()})")
