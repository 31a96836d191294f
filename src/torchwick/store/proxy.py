"""The proxy that the environment names for a host: how to ask it, and how to get through it.

botocore's own requests obey ``HTTP_PROXY``, ``HTTPS_PROXY`` and ``NO_PROXY`` in the way of `urllib.request`;
these functions make the data plane obey them in the same way.
"""

from __future__ import annotations

import base64
import http.client
import socket
import urllib.request
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from torchwick.errors import AccessDeniedError, CredentialsError, StoreError

__all__ = ["Proxy", "open_tunnel", "proxy_for"]

_DEFAULT_PORT = 80  # where botocore, too, looks for a proxy that names none
_WRITE = "Write it as http://host:port, or list the store's host in NO_PROXY."


@dataclass(frozen=True)
class Proxy:
    """A proxy spoken to over plain HTTP.

    Attributes:
        host: its name.
        port: its port.
        headers: what it wants to be sent; they may carry a password.
    """

    host: str
    port: int
    headers: dict[str, str] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def proxy_for(scheme: str, authority: str) -> Proxy | None:
    """Return the proxy through which ``scheme://authority`` is reached, or None: directly.

    Raises:
        StoreError: the environment names a proxy that cannot be used. The message does not repeat its
            address, which may carry a password.
    """
    if urllib.request.proxy_bypass(authority):
        return None
    address = urllib.request.getproxies().get(scheme)
    if not address:
        return None
    try:
        parts = urlsplit(address if "//" in address else f"//{address}", scheme="http")
        host, port = parts.hostname, parts.port or _DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if host and "@" in f"{parts.path}{parts.query}{parts.fragment}":
        message = f"the password of the proxy in {scheme.upper()}_PROXY is not escaped"
        raise StoreError(message, hint="Write @ in it as %40, / as %2F, ? as %3F and # as %23.")
    if not host:
        raise StoreError(f"the proxy in {scheme.upper()}_PROXY has no address", hint=_WRITE)
    if parts.scheme != "http":
        message = f"the proxy in {scheme.upper()}_PROXY is a {parts.scheme} one, which is not supported"
        raise StoreError(message, hint=_WRITE)
    return Proxy(host, port, _authorization(parts.username, parts.password))


def _authorization(name: str | None, password: str | None) -> dict[str, str]:
    if name is None:
        return {}
    told = f"{unquote(name)}:{unquote(password or '')}"
    return {"Proxy-Authorization": "Basic " + base64.b64encode(told.encode()).decode()}


def open_tunnel(connected: socket.socket, proxy: Proxy, authority: str) -> None:
    """Have the proxy pass on everything from now on (RFC 9110, section 9.3.6: CONNECT).

    Args:
        connected: a socket that is connected to the proxy.
        proxy: which.
        authority: ``host:port`` of the other end.

    Raises:
        CredentialsError: it wants a user name and a password.
        AccessDeniedError: it does not allow the host.
        ConnectionError: it could not reach the host.
    """
    head = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    head += [f"{name}: {value}" for name, value in proxy.headers.items()]
    connected.sendall("\r\n".join([*head, "", ""]).encode("latin-1"))
    answer = http.client.HTTPResponse(connected, method="CONNECT")
    try:
        answer.begin()
    finally:
        answer.close()  # the file over the socket, not the socket
    if answer.status == http.client.OK:
        return
    raise refusal(proxy, answer.status, authority)


def refusal(proxy: Proxy, status: int, authority: str) -> Exception:
    """Return what it means that a proxy answered `status` in place of the host."""
    if status == http.client.PROXY_AUTHENTICATION_REQUIRED:
        hint = "Write the right ones into the proxy's variable: http://user:password@host:port."
        does = (
            "does not accept the user name and password"
            if proxy.headers
            else "wants a user name and password"
        )
        return CredentialsError(f"the proxy {proxy} {does}", code=str(status), hint=hint)
    if status in (http.client.FORBIDDEN, http.client.METHOD_NOT_ALLOWED):
        hint = "Ask whoever runs the proxy to allow the host, or list it in NO_PROXY."
        return AccessDeniedError(
            f"the proxy {proxy} does not let {authority} through", code=str(status), hint=hint
        )
    return ConnectionError(f"the proxy {proxy} answered {status} when asked for {authority}")
