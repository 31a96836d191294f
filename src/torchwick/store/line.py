"""One connection to whichever host the last request named: dialled, secured, kept open, aborted."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from torchwick.errors import CredentialsError, StoreError
from torchwick.store.http import Headers, HTTPAnswer
from torchwick.store.proxy import Proxy, open_tunnel, proxy_for, refusal
from torchwick.store.redact import frameless
from torchwick.store.sending import await_answer, send_body

__all__ = ["Line", "trusting"]

_turn = itertools.count()
_LAST_WORDS = 1.0  # seconds for the answer of a server that has closed, which is there already or never


class _OverTLS(http.client.HTTPConnection):
    """An HTTP connection whose socket is secure already.

    `HTTPSConnection` would load the system's authorities, 18 ms for each connection, for a context not used.
    """

    default_port = http.client.HTTPS_PORT


@dataclass(frozen=True, repr=False)
class _Request:
    method: str
    url: SplitResult
    headers: Mapping[str, str]
    while_waiting: Callable[[], None] | None
    body: Sequence[memoryview]
    sent: Callable[[int], object] | None

    @property
    def target(self) -> str:
        path = self.url.path or "/"
        return f"{path}?{self.url.query}" if self.url.query else path


class Line:
    """One connection to whichever host the last request named, kept open from request to request."""

    def __init__(self, timeout: float, tls: Callable[[], ssl.SSLContext]) -> None:
        self._timeout = timeout
        self._tls = tls
        self._origin: tuple[str, str] | None = None
        self._proxy: Proxy | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._answer: HTTPAnswer | None = None
        self._sent = True
        self.aborted = False

    def request(
        self,
        url: str,
        headers: Mapping[str, str],
        while_waiting: Callable[[], None] | None = None,
        *,
        method: str = "GET",
        body: Sequence[memoryview] = (),
        sent: Callable[[int], object] | None = None,
        repeatable: bool = True,
    ) -> HTTPAnswer:
        """Send a request and await the head of its answer.

        Args:
            url: where to.
            headers: all of them; those of a body among them.
            while_waiting: called once, after the request has gone out and before the answer is awaited.
            method: HTTP's.
            body: what is sent after the head.
            sent: told how many bytes of the body went out, as they go.
            repeatable: whether it may be sent twice without a word: a second answer says the same.

        Raises:
            OSError: no connection, or it broke.
            http.client.HTTPException: what came back is not HTTP.
            StoreError: the proxy refused.
        """
        asked = _Request(method, urlsplit(url), headers, while_waiting, body, sent)
        reused = self._can_carry(asked.url.scheme, asked.url.netloc)
        if not reused:
            self.reset()
        try:
            return self._exchange(asked)
        except (ConnectionResetError, BrokenPipeError):
            if not (reused and repeatable) or self.aborted:
                raise
        # The server had just then closed a connection that it had kept open: no failure of the request.
        self.reset()
        return self._exchange(asked)

    def _exchange(self, asked: _Request) -> HTTPAnswer:
        url, target, headers = asked.url, asked.target, asked.headers
        connection = self._connect(url.scheme, url.netloc)
        if self._proxy is not None and url.scheme == "http":  # without a tunnel it is told the whole URL
            target, headers = f"http://{url.netloc}{target}", Headers({**headers, **self._proxy.headers})
        with self._reset_if_broken():
            _send(connection, asked.method, target, headers)
            self._sent = not asked.body or self._send_body(connection.sock, asked)
            if asked.while_waiting is not None:
                asked.while_waiting()
            answer = HTTPAnswer(connection.getresponse(), connection.sock, self._timeout)
            if not self._sent and answer.status < http.client.MULTIPLE_CHOICES:
                raise ConnectionResetError("a success was answered before all was sent")
        if self._proxy is not None and answer.status == http.client.PROXY_AUTHENTICATION_REQUIRED:
            raise refusal(self._proxy, answer.status, url.netloc)
        self._answer = answer
        return answer

    def _send_body(self, connected: socket.socket, asked: _Request) -> bool:
        """Send a body and await the answer, and tell whether all of the body went out.

        Where the other side has closed, it may have said why: then that is what is read next.
        """
        try:
            if not send_body(connected, asked.body, self._timeout, asked.sent):
                return False
            await_answer(connected, self._timeout)
        except OSError:
            if self.aborted or not _readable(connected):
                raise
            connected.settimeout(_LAST_WORDS)
            return False
        return True

    @contextlib.contextmanager
    def _reset_if_broken(self) -> Iterator[None]:
        """Close a line whose exchange was broken off: its next answer would be to the last request."""
        try:
            yield
        except BaseException:
            self.reset()
            raise

    def _connect(self, scheme: str, authority: str) -> http.client.HTTPConnection:
        if self._connection is None:
            secure = scheme == "https"
            connection = (_OverTLS if secure else http.client.HTTPConnection)(authority)
            self._proxy = proxy_for(scheme, authority)
            connection.sock = self._dial(connection.host, connection.port, secure=secure)
            self._connection, self._origin = connection, (scheme, authority)
        if self._socket is not None:
            self._socket.settimeout(self._timeout)  # reading a body may have left that to the kernel
        return self._connection

    def _can_carry(self, scheme: str, authority: str) -> bool:
        """Whether the open connection can carry one more request, to this host."""
        if self._answer is not None:
            self._answer.close()
        return (
            self._connection is not None
            and self._connection.sock is not None  # None: the server announced that it would close
            and self._origin == (scheme, authority)
            and self._sent
            and (self._answer is None or self._answer.reusable)
            and not _readable(self._connection.sock)
        )

    def _dial(self, host: str, port: int, *, secure: bool) -> socket.socket:
        """Open a socket, each connection starting from another of the addresses."""
        tls = self._tls() if secure else None
        peer = (host, port) if self._proxy is None else (self._proxy.host, self._proxy.port)
        try:
            addresses = socket.getaddrinfo(*peer, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            raise self._named(error, *peer) from None
        first = next(_turn) % len(addresses)
        failure = OSError(f"{peer[0]} has no address")
        for family, kind, protocol, _, address in addresses[first:] + addresses[:first]:
            self._socket = socket.socket(family, kind, protocol)  # at once, so that abort() reaches it
            try:
                self._open(self._socket, address)
                if tls is not None:
                    self._secure(self._socket, tls, host, port)
            except StoreError:
                self._socket.close()
                raise
            except OSError as error:
                self._socket.close()
                failure = self._named(error, *((host, port) if isinstance(error, ssl.SSLError) else peer))
            else:
                return self._socket
        raise failure

    def _named(self, error: OSError, host: str, port: int) -> OSError:
        """Have the error say which peer it is about."""
        if error.strerror:
            error.strerror += f" ({'the proxy ' if self._proxy else ''}{host}:{port})"
        return error

    def _open(self, dialled: socket.socket, address: tuple[object, ...]) -> None:
        self.raise_if_aborted()
        dialled.settimeout(self._timeout)
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        dialled.connect(address)
        self.raise_if_aborted()

    def _secure(self, dialled: socket.socket, tls: ssl.SSLContext, host: str, port: int) -> None:
        if self._proxy is not None:
            open_tunnel(dialled, self._proxy, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        # Wrapping empties the socket: the wrapped one must be in abort()'s reach before its handshake.
        wrapped = tls.wrap_socket(dialled, server_hostname=host, do_handshake_on_connect=False)
        self._socket = wrapped
        self.raise_if_aborted()
        wrapped.do_handshake()

    def raise_if_aborted(self) -> None:
        """Raise ConnectionAbortedError if `abort` was called."""
        if self.aborted:
            raise ConnectionAbortedError("the transfer was cancelled")

    def reset(self) -> None:
        """Close the connection; the next request opens another."""
        if self._answer is not None:
            self._answer.close()
        if self._connection is not None:
            self._connection.close()
        self._answer = self._connection = self._socket = self._origin = None

    def abort(self) -> None:
        """Make the call in progress, and any later one, fail at once. Callable from any thread."""
        self.aborted = True
        dialled = self._socket
        if dialled is not None:
            try:
                # Not SSLSocket.shutdown, which drops its TLS state: a reader in another thread would
                # then take ciphertext for data.
                socket.socket.shutdown(dialled, socket.SHUT_RDWR)
            except OSError:
                return  # it was not connected any more


def _send(
    connection: http.client.HTTPConnection, method: str, target: str, headers: Mapping[str, str]
) -> None:
    """Send the request.

    A failure goes on without the frames it came through: their locals hold the headers, and with them the
    signature, as a traceback that shows locals would print.

    Raises:
        CredentialsError: a header cannot be sent as it is; only what the caller's environment gave can.
    """
    failure: BaseException | None = None
    try:
        connection.request(method, target, headers=dict(headers))
    except ValueError:  # its message holds the header
        hint = "Copy them again, whole and without line breaks."
        failure = CredentialsError("the credentials hold a character that cannot be sent", hint=hint)
    except BaseException as error:  # noqa: BLE001 - Ctrl-C too
        failure = frameless(error)
    if failure is not None:
        raise failure


def trusting(bundle: str | None) -> ssl.SSLContext:
    """Return a TLS context that trusts a bundle of authorities, or the system's where it is None.

    Raises:
        StoreError: the bundle cannot be read.
    """
    try:
        return ssl.create_default_context(cafile=bundle)
    except OSError as error:
        hint = "Check S3Config.ca_bundle and AWS_CA_BUNDLE: it must be a PEM file."
        raise StoreError(
            f"the certificate authorities in {bundle} cannot be read: {error.strerror or error}", hint=hint
        ) from error


def _readable(idle: socket.socket) -> bool:
    """Whether something arrived while nothing was asked for: the server's goodbye."""
    if not hasattr(select, "poll"):  # Windows: find out by the request that fails, and is tried again
        return False
    watch = select.poll()
    watch.register(idle, select.POLLIN)
    return bool(watch.poll(0))
