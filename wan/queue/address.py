"""Where a server is, and the login that goes there and nowhere else."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from ..files import shown

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True, slots=True)
class Address:
    """A server.

    Attributes:
        secure: whether TLS is spoken.
        host, port: where.
        base: path before every route: empty, or ``/comfy``.
        authorization: the header of this name, or None; never printed.
    """

    secure: bool
    host: str
    port: int
    base: str = ""
    authorization: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        """The server as people see it, without a login."""
        return f"{self.netloc}{self.base}"

    @property
    def netloc(self) -> str:
        """Host and port, as the header ``Host`` says them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def http(self, timeout: float) -> http.client.HTTPConnection:
        """A connection for one request; it follows no redirect, so a login never goes elsewhere."""
        if self.secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(
                self.host, self.port, timeout=timeout, context=context
            )
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def socket(self, timeout: float) -> socket.socket:
        """A connected socket; raises OSError."""
        link = socket.create_connection((self.host, self.port), timeout)
        if not self.secure:
            return link
        try:
            return ssl.create_default_context().wrap_socket(link, server_hostname=self.host)
        except BaseException:
            link.close()
            raise


def parse_address(text: str, authorization: str | None = None) -> Address:
    """The server of a URL such as ``127.0.0.1:8188`` or ``https://name:password@host/comfy``.

    Args:
        text: without a scheme it is http.
        authorization: the header of this name, for a URL without a login of its own.

    Raises:
        ValueError: no such URL.
    """
    told = text.rpartition("@")[2]
    refused = ValueError(
        f"{shown(told)!r} is not the address of a server; write host:port or https://host/path"
    )
    try:
        url = urlsplit(text if "://" in text else f"http://{text}")
        port = url.port
    except ValueError:
        raise refused from None
    if url.scheme not in PORTS or not url.hostname or url.query or url.fragment:
        raise refused
    if url.username is not None:
        login = f"{unquote(url.username)}:{unquote(url.password or '')}"
        authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
    if authorization is not None and not (authorization.isascii() and authorization.isprintable()):
        raise ValueError("the login holds characters no header may have; check it for line ends")
    if not (url.path.isascii() and url.path.isprintable()) or " " in url.path:
        raise refused
    return Address(
        secure=url.scheme == "https",
        host=url.hostname,
        port=port or PORTS[url.scheme],
        base=url.path.rstrip("/"),
        authorization=authorization,
    )
