"""A forward proxy: CONNECT for TLS, whole URLs for plain HTTP; it can lead every host to one server.

with Relay(password="open sesame") as relay: ...          # wants "Proxy-Authorization: Basic …"
with Relay(leads_to=("127.0.0.1", port)) as relay: ...    # whatever host is named, that server answers
relay.requests                                            # the request lines and headers it was sent
"""

from __future__ import annotations

import base64
import selectors
import socket
import socketserver
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

PIECE = 64 * 1024


@dataclass(frozen=True)
class Asked:
    """One request that reached the proxy."""

    method: str
    target: str
    headers: Mapping[str, str]


class Relay:
    """The proxy.

    Args:
        password: what user "me" has to give; None asks for nothing.
        leads_to: where every connection goes, whatever host it was meant for; None: to that host.
        refuses: a status with which it answers everything.
    """

    def __init__(
        self,
        *,
        password: str | None = None,
        leads_to: tuple[str, int] | None = None,
        refuses: int | None = None,
    ) -> None:
        self.password = password
        self.leads_to = leads_to
        self.refuses = refuses
        self.requests: list[Asked] = []
        self.stopping = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="relay")
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        """The address for HTTP_PROXY and HTTPS_PROXY, with the password if there is one."""
        user = f"me:{self.password}@" if self.password is not None else ""
        return f"http://{user}127.0.0.1:{self.port}"

    def hosts(self) -> set[str]:
        """The hosts it was asked for."""
        return {
            asked.target.rpartition(":")[0] if asked.method == "CONNECT" else urlsplit(asked.target).netloc
            for asked in self.requests
        }

    def refusal(self, asked: Asked) -> int | None:
        """Return the status to refuse with, or None."""
        if self.refuses is not None:
            return self.refuses
        wanted = base64.b64encode(f"me:{self.password}".encode()).decode()
        told = asked.headers.get("proxy-authorization")
        return 407 if self.password is not None and told != f"Basic {wanted}" else None


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = False
    request_queue_size = 128
    owner: Relay

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away in the middle are no failure of the proxy."""


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        owner = cast("_Server", self.server).owner
        self.connection.settimeout(10)
        head = self._head()
        if not head:
            return
        asked = _parse(head)
        owner.requests.append(asked)
        status = owner.refusal(asked)
        if status is not None:
            self.wfile.write(
                f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
            )
            return
        url = urlsplit(f"//{asked.target}" if asked.method == "CONNECT" else asked.target)
        peer = owner.leads_to or (url.hostname or "", url.port or 80)
        with socket.create_connection(peer, timeout=10) as there:
            if asked.method == "CONNECT":
                self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                there.sendall(_without_host(head, asked, url.path, url.query))
            self._pass_on(there, owner)

    def _head(self) -> bytes:
        lines = []
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line)
        return b"".join(lines)

    def _pass_on(self, there: socket.socket, owner: Relay) -> None:
        """Pass bytes on in both directions. A plain connection carries one request here, then closes."""
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.connection, selectors.EVENT_READ, there)
            waiting.register(there, selectors.EVENT_READ, self.connection)
            while not owner.stopping.is_set():
                for key, _ in waiting.select(timeout=0.05):
                    data = cast("socket.socket", key.fileobj).recv(PIECE)
                    if not data:
                        return
                    cast("socket.socket", key.data).sendall(data)


def _parse(head: bytes) -> Asked:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines if line)
    return Asked(method, target, {name.lower(): value.strip() for name, _, value in pairs})


def _without_host(head: bytes, asked: Asked, path: str, query: str) -> bytes:
    """Return the head as it goes on to the server: the path alone, and one request a connection."""
    target = f"{path}?{query}" if query else path
    rest = head.partition(b"\r\n")[2]
    kept = [line for line in rest.split(b"\r\n") if line and not line.lower().startswith(b"proxy-")]
    return b"\r\n".join([f"{asked.method} {target} HTTP/1.1".encode(), *kept, b"Connection: close", b"", b""])
