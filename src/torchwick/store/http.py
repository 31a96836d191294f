"""The data plane: one HTTP/1.1 connection that reads one range straight into the caller's memory.

`http.client` parses heads; bodies are read by `readinto`, so that the kernel (or OpenSSL) writes into the
tensors' own memory. Who signs the request is not this module's business.
"""

from __future__ import annotations

import http.client
import io
import itertools
import math
import re
import select
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from torchwick.errors import StoreError
from torchwick.store.base import ObjectInfo, check_pinned, lying_answer
from torchwick.uri import URI

__all__ = ["HTTPAnswer", "Line", "RangeBody", "range_header", "ranged_body", "trusting"]

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_KERNEL_CAN_WAIT = sys.platform == "linux"  # elsewhere a receive timeout is spelled otherwise
_FRAMED = 64 << 10  # bytes of one read where http.client unwraps them: they are copied once more
_turn = itertools.count()


class HTTPAnswer:
    """The head of an answer, and its body to be read.

    Args:
        response: the head, parsed.
        socket_: what the body arrives on; None where only `http.client` can tell its end.
        timeout: seconds after which a read returns.
    """

    def __init__(
        self, response: http.client.HTTPResponse, socket_: socket.socket | None, timeout: float
    ) -> None:
        self._response = response
        self._socket = socket_
        self._timeout = timeout
        self._receive: Callable[[memoryview], int] | None = None
        self._left = response.length
        self.status = response.status
        self.headers = response.headers
        self.length = response.length
        self.reusable = False

    def readinto(self, buffer: memoryview) -> int:
        """Read into `buffer`; 0 at the end of the body.

        Whatever the body arrives on, this returns after about the timeout with what has come until then, so
        that the caller can tell a slow connection from a fast one.

        Raises:
            ConnectionError: the connection ended before the body did.
            TimeoutError: no byte came.
        """
        if self._left is None:
            return self._read_framed(buffer)
        buffer = buffer[: self._left]
        if not buffer:
            return 0
        count = self._read_buffered(buffer) if self._receive is None else self._receive(buffer)
        if count == 0:
            raise ConnectionResetError(f"the connection ended {self._left} bytes before the answer did")
        self._left -= count
        return count

    def _read_framed(self, buffer: memoryview) -> int:
        """Read a body whose end only `http.client` can tell, for no longer than one timeout.

        `HTTPResponse.readinto` would go on until the buffer is full; `read1` reads the socket at most once.
        """
        filled, size, end = 0, len(buffer), time.monotonic() + self._timeout
        while filled < size and (data := self._response.read1(min(size - filled, _FRAMED))):
            buffer[filled : filled + len(data)] = data
            filled += len(data)
            if time.monotonic() > end:
                break
        return filled

    def _read_buffered(self, buffer: memoryview) -> int:
        """Read what arrived together with the head, or more.

        A `BufferedReader` holds at most its buffer's size, and holds nothing after filling more than that:
        from then on bytes may come straight from the socket.
        """
        count = self._response.fp.readinto1(buffer)
        if len(buffer) >= io.DEFAULT_BUFFER_SIZE and self._socket is not None:
            self._receive = _receiver(self._socket)
        return count

    def read(self, limit: int | None = None) -> bytes:
        """Read the rest of the body, or up to `limit` bytes of it."""
        data = self._response.read(limit)
        if self._left is not None:
            self._left -= len(data)
        return data

    def stream(self, amount: int = 1 << 16, decode_content: bool = False) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the rest of the body, under the name by which botocore reads the body of an error."""
        while data := self.read(amount):
            yield data

    def close(self) -> None:
        """Let go of the body; the connection is `reusable` if it was read to its end."""
        if not self._response.closed:
            self.reusable = self._left == 0 or (self._left is None and self._response.isclosed())
            self._response.close()


def _receiver(connected: socket.socket) -> Callable[[memoryview], int]:
    """Return the shortest way from a socket into memory.

    It fills the buffer unless the connection ends, or the time of one timeout does.
    """
    if isinstance(connected, ssl.SSLSocket):
        return _tls_receiver(connected)
    if _KERNEL_CAN_WAIT:
        return _waiting_receiver(connected)
    return connected.recv_into


def _waiting_receiver(connected: socket.socket) -> Callable[[memoryview], int]:
    """Have the kernel fill the whole buffer in one call, and keep the time itself (SO_RCVTIMEO).

    The time is that of the call, not of each byte: when it is over, the call returns what has come.

    Python's own timeout asks poll(2) before every read and gets what has arrived by then; this way took 6 %
    off a load over loopback.
    """
    seconds = connected.gettimeout() or 0.0
    connected.settimeout(None)
    timeval = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)

    def receive(buffer: memoryview) -> int:
        try:
            return connected.recv_into(buffer, 0, socket.MSG_WAITALL)
        except BlockingIOError as error:
            raise TimeoutError(f"no byte came for {seconds:g} seconds") from error

    return receive


def _tls_receiver(connected: ssl.SSLSocket) -> Callable[[memoryview], int]:
    """Fill the buffer record by record.

    A record has at most 16 KiB (RFC 8446, section 5.1), so that the frames run for each are what reading
    costs in Python: here one, with `HTTPResponse.readinto` three. The timeout is Python's, for each record.
    """
    read: Any = connected.read  # typed as if there were no buffer to read into
    seconds = connected.gettimeout() or math.inf
    clock = time.monotonic

    def receive(buffer: memoryview) -> int:
        filled, size, end = 0, len(buffer), clock() + seconds
        try:
            while filled < size and (count := read(size - filled, buffer[filled:])):
                filled += count
                if clock() > end:
                    break
        except TimeoutError:
            if not filled:
                raise
        return filled

    return receive


class _OverTLS(http.client.HTTPConnection):
    """An HTTP connection whose socket is secure already.

    `HTTPSConnection` would load the system's authorities, 18 ms for each connection, for a context not used.
    """

    default_port = http.client.HTTPS_PORT


class Line:
    """One connection to whichever host the last request named, kept open from request to request."""

    def __init__(self, timeout: float, tls: Callable[[], ssl.SSLContext]) -> None:
        self._timeout = timeout
        self._tls = tls
        self._origin: tuple[str, str] | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._socket: socket.socket | None = None
        self._answer: HTTPAnswer | None = None
        self.aborted = False

    def request(
        self,
        url: str,
        headers: Mapping[str, str],
        while_waiting: Callable[[], None] | None = None,
    ) -> HTTPAnswer:
        """Send a GET request and await the head of its answer.

        Raises:
            OSError: no connection, or it broke.
            http.client.HTTPException: what came back is not HTTP.
        """
        parts = urlsplit(url)
        target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
        reused = self._can_carry(parts.scheme, parts.netloc)
        if not reused:
            self.reset()
        try:
            return self._exchange(parts.scheme, parts.netloc, target, headers, while_waiting)
        except (ConnectionResetError, BrokenPipeError):
            if not reused or self.aborted:
                raise
        # The server had just then closed a connection that it had kept open: no failure of the request.
        self.reset()
        return self._exchange(parts.scheme, parts.netloc, target, headers, while_waiting)

    def _exchange(
        self,
        scheme: str,
        authority: str,
        target: str,
        headers: Mapping[str, str],
        while_waiting: Callable[[], None] | None,
    ) -> HTTPAnswer:
        connection = self._connect(scheme, authority)
        connection.request("GET", target, headers=dict(headers))
        if while_waiting is not None:
            while_waiting()
        self._answer = HTTPAnswer(connection.getresponse(), connection.sock, self._timeout)
        return self._answer

    def _connect(self, scheme: str, authority: str) -> http.client.HTTPConnection:
        if self._connection is None:
            secure = scheme == "https"
            connection = (_OverTLS if secure else http.client.HTTPConnection)(authority)
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
            and (self._answer is None or self._answer.reusable)
            and not _readable(self._connection.sock)
        )

    def _dial(self, host: str, port: int, *, secure: bool) -> socket.socket:
        """Open a socket, each connection starting from another of the host's addresses."""
        tls = self._tls() if secure else None
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        first = next(_turn) % len(addresses)
        failure: OSError | None = None
        for family, kind, protocol, _, address in addresses[first:] + addresses[:first]:
            self._socket = socket.socket(family, kind, protocol)  # at once, so that abort() reaches it
            try:
                self._open(self._socket, address)
                if tls is not None:
                    self._secure(self._socket, tls, host)
            except OSError as error:
                self._socket.close()
                failure = error
            else:
                return self._socket
        raise failure or OSError(f"{host} has no address")

    def _open(self, dialled: socket.socket, address: tuple[object, ...]) -> None:
        self._raise_if_aborted()
        dialled.settimeout(self._timeout)
        dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        dialled.connect(address)
        self._raise_if_aborted()

    def _secure(self, dialled: socket.socket, tls: ssl.SSLContext, host: str) -> None:
        # Wrapping empties the socket: the wrapped one must be in abort()'s reach before its handshake.
        wrapped = tls.wrap_socket(dialled, server_hostname=host, do_handshake_on_connect=False)
        self._socket = wrapped
        self._raise_if_aborted()
        wrapped.do_handshake()

    def _raise_if_aborted(self) -> None:
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
            f"the certificate authorities in {bundle} cannot be read: {error}", hint=hint
        ) from error


def _readable(idle: socket.socket) -> bool:
    """Whether something arrived while nothing was asked for: the server's goodbye."""
    if not hasattr(select, "poll"):  # Windows: find out by the request that fails, and is tried again
        return False
    watch = select.poll()
    watch.register(idle, select.POLLIN)
    return bool(watch.poll(0))


class RangeBody:
    """The body of an answer whose head agreed with what was asked for."""

    def __init__(self, answer: HTTPAnswer, info: ObjectInfo, start: int, stop: int | None) -> None:
        self._answer = answer
        self.info = info
        self.start = start
        self.stop = stop

    def readinto(self, buffer: memoryview) -> int:
        """Read into `buffer`; 0 at the end."""
        return self._answer.readinto(buffer)

    def close(self) -> None:
        """Let the connection go on."""
        self._answer.close()


def range_header(start: int, stop: int | None) -> str:
    """Spell a half-open range as HTTP does (RFC 9110, section 14.1.2: last byte included).

    Example:
        >>> range_header(0, 10), range_header(5, None), range_header(-8, None)
        ('bytes=0-9', 'bytes=5-', 'bytes=-8')
    """
    if start < 0:
        return f"bytes={start}"
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"


def ranged_body(
    uri: URI, answer: HTTPAnswer, start: int, stop: int | None, pinned: ObjectInfo | None
) -> RangeBody:
    """Hold a 2xx answer against its request, before any of its bytes count.

    Raises:
        ObjectChangedError: it speaks of another version than `pinned`.
        StoreError: it is compressed, or another range than the one asked for.
    """
    headers = answer.headers
    if (encoding := headers.get("Content-Encoding", "identity")) not in ("identity", "aws-chunked", ""):
        raise lying_answer(uri, f"the server sent the bytes encoded as {encoding}, though asked not to")
    first: int
    last: int | None
    ranged = answer.status == http.client.PARTIAL_CONTENT
    if ranged:
        first, last, total = _content_range(uri, headers.get("Content-Range", ""))
    else:
        first, last, total = 0, answer.length, answer.length
    info = ObjectInfo(
        uri, total, headers.get("ETag"), headers.get("x-amz-version-id"), headers.get("Last-Modified"), ranged
    )
    if pinned is not None:
        check_pinned(info, pinned)
    if ranged:
        _check_range(uri, (first, last, total), start, stop)
    elif start != 0 and (pinned is None or pinned.ranged):
        raise lying_answer(uri, "the server ignored the range it was asked for")
    return RangeBody(answer, info, first, last)


def _content_range(uri: URI, text: str) -> tuple[int, int, int | None]:
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise lying_answer(uri, f"the answer's Content-Range is {text!r}")
    return int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])


def _check_range(uri: URI, got: tuple[int, int | None, int | None], start: int, stop: int | None) -> None:
    first, last, total = got
    if total is None:
        raise lying_answer(uri, "the answer does not say how large the object is")
    wanted_first = max(0, total + start) if start < 0 else start
    wanted_last = total if stop is None else min(stop, total)
    if (first, last) != (wanted_first, wanted_last):
        raise lying_answer(
            uri, f"asked for bytes {wanted_first} to {wanted_last}, the answer holds {first} to {last}"
        )
