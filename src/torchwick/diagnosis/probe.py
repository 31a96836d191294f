"""One connection to a server, made step by step, so that the step that fails can be told."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from torchwick.store.proxy import Proxy, open_tunnel, proxy_for, refusal

__all__ = ["Answer", "Probe"]


@dataclass(frozen=True)
class Answer:
    """What a server said to a request that asks for nothing.

    Attributes:
        status: of HTTP.
        server: what it calls itself, or None.
        date: its clock, as it wrote it, or None.
        seconds: from the request to the answer.
    """

    status: int
    server: str | None
    date: str | None
    seconds: float


class Probe:
    """The way to one server: name, connection, TLS, answer. Each step needs the one before it.

    Args:
        url: any address of the server's; only its scheme, host and port matter.
        timeout: seconds that each step may take.
    """

    def __init__(self, url: str, timeout: float) -> None:
        parts = urlsplit(url)
        self.scheme = parts.scheme
        self.secure = parts.scheme == "https"
        self.host = parts.hostname or ""
        self.port = parts.port or (443 if self.secure else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._timeout = timeout
        self._addresses: list[tuple[int, tuple[object, ...]]] = []
        self._socket: socket.socket | None = None
        self._address = ""

    @property
    def proxy(self) -> Proxy | None:
        """The proxy in between, which then is what is looked up and connected to."""
        return proxy_for(self.scheme, self._authority)

    @property
    def peer(self) -> tuple[str, int]:
        """The host and port that this machine talks to."""
        proxy = self.proxy
        return (self.host, self.port) if proxy is None else (proxy.host, proxy.port)

    def resolve(self) -> list[str]:
        """Return the peer's addresses.

        Raises:
            OSError: its name is not known.
        """
        found = socket.getaddrinfo(*self.peer, type=socket.SOCK_STREAM)
        self._addresses = [(entry[0], entry[4]) for entry in found]
        return [str(address[0]) for _, address in self._addresses]

    def connect(self) -> str:
        """Connect to the first address that answers, and return it.

        Raises:
            OSError: none does. All together they are given the time of one.
        """
        failure: OSError | None = None
        for family, address in self._addresses:
            tried = socket.socket(family, socket.SOCK_STREAM)
            tried.settimeout(self._timeout / len(self._addresses))
            try:
                tried.connect(address)
            except OSError as error:
                tried.close()
                failure = error
            else:
                tried.settimeout(self._timeout)
                self._socket, self._address = tried, str(address[0])
                return self._address
        raise failure or OSError(f"{self.peer[0]} has no address")

    def encrypt(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Agree on a key with the server, through the proxy if there is one, and check its certificate.

        Raises:
            OSError: no agreement, or a certificate that is not trusted.
            StoreError: the proxy refused.
        """
        proxy = self.proxy
        if proxy is not None:
            host = f"[{self.host}]" if ":" in self.host else self.host
            open_tunnel(self._connected, proxy, f"{host}:{self.port}")
        wrapped = context.wrap_socket(self._connected, server_hostname=self.host)
        self._socket = wrapped
        return wrapped

    def ask(self) -> Answer:
        """Send ``HEAD /`` without a signature: any answer will do.

        Raises:
            OSError: none came.
            http.client.HTTPException: it is not HTTP.
            StoreError: the proxy refused.
        """
        proxy = None if self.secure else self.proxy
        connection = http.client.HTTPConnection(self.host, self.port)
        connection.sock = self._connected
        target, headers = ("/", {}) if proxy is None else (f"http://{self._authority}/", proxy.headers)
        started = time.perf_counter()
        connection.request("HEAD", target, headers={"Host": self._authority, **headers})
        with connection.getresponse() as response:
            seconds = time.perf_counter() - started
            if proxy is not None and response.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
                raise refusal(proxy, response.status, self._authority)
            return Answer(response.status, response.getheader("Server"), response.getheader("Date"), seconds)

    @property
    def _connected(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionError("there is no connection")
        return self._socket

    @property
    def within_machine(self) -> bool:
        """Whether the connection that was made is one to this machine, and no proxy takes it elsewhere."""
        return self.proxy is None and ipaddress.ip_address(self._address.partition("%")[0]).is_loopback

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
