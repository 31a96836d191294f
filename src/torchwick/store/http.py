"""What is sent, and what comes back: headers that hide themselves, bodies read into the caller's memory.

`http.client` parses heads; bodies are read by `readinto`, so that the kernel (or OpenSSL) writes into the
tensors' own memory.
"""

from __future__ import annotations

import http.client
import io
import math
import socket
import ssl
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["HTTPAnswer", "Headers"]

_KERNEL_CAN_WAIT = sys.platform == "linux"  # elsewhere a receive timeout is spelled otherwise
_PATIENCE = 3  # timeouts that an error may take to be told
_MOST_TOLD = 4 << 20  # bytes of an error, or of a list of parts, that botocore is given
_FRAMED = 64 << 10  # bytes of one read where http.client unwraps them: they are copied once more


class Headers(dict[str, str]):
    """Headers of a request. A traceback that shows locals shows their names only."""

    def __repr__(self) -> str:
        return f"<headers {', '.join(self)}>"


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
        self.patience = _PATIENCE * timeout
        """Seconds that `read` may take."""

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

    def read(self, limit: int) -> bytes:
        """Return the rest of the body, or up to `limit` bytes of it: an error, or a list of parts.

        Raises:
            TimeoutError: it does not come within the answer's `patience`, three timeouts by default.
        """
        data, end = bytearray(), time.monotonic() + self.patience
        while len(data) < limit and (piece := self._response.read1(min(limit - len(data), _FRAMED))):
            data += piece
            if time.monotonic() > end:
                raise TimeoutError(f"an answer did not end within {self.patience:g} seconds")
        if self._left is not None:
            self._left -= len(data)
        return bytes(data)

    def stream(self, amount: int = 1 << 16, decode_content: bool = False) -> Iterator[bytes]:  # noqa: ARG002
        """Yield the rest of the body, or its first 4 MiB, under the name by which botocore reads bodies.

        White space that kept a connection alive is left out: before an XML declaration it is an error.
        """
        if data := self.read(_MOST_TOLD).lstrip():
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
