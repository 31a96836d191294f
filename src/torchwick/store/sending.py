"""Sends the body of a request from the caller's memory, and notices an answer that comes before its end.

A store that refuses a request (it is busy, it knows no such key) may answer while the body is still on its
way, and close: whoever only sends meets a broken pipe, and never reads why.

A line is dead when nothing leaves it, and not when nothing more goes in: the kernel takes megabytes at once,
and a slow line needs longer than any timeout until it takes the next.
"""

from __future__ import annotations

import collections
import select
import socket
import ssl
import sys
from collections.abc import Callable, Sequence

__all__ = ["await_answer", "send_body"]

_MOST_VIEWS = 1024  # of one sendmsg: Linux's IOV_MAX
_SLICE = 4 << 20  # bytes offered at once: as many as the kernel's send buffer takes (net.ipv4.tcp_wmem)
_RECORD = 16 << 10  # bytes; OpenSSL writes one record a call (RFC 8446, section 5.1)
_TOLD = 1 << 20  # bytes between two words on how far it is, over TLS


def send_body(
    connected: socket.socket,
    body: Sequence[memoryview],
    timeout: float,
    sent: Callable[[int], object] | None = None,
) -> bool:
    """Send a body.

    Args:
        connected: where to; left with Python's timeout set.
        body: the bytes, in order.
        timeout: seconds without progress after which the connection counts as dead, twice that at the latest.
        sent: told, as they go, how many bytes more went out. What it raises ends the sending.

    Returns:
        Whether all of it was sent: the other side may have answered before, or closed.

    Raises:
        OSError: the connection broke.
        TimeoutError: nothing could be sent for so long.
    """
    told = sent or _unheard
    if not hasattr(select, "poll"):  # Windows
        for view in body:
            connected.sendall(view)
            told(len(view))
        return True
    connected.settimeout(0.0)
    try:
        if isinstance(connected, ssl.SSLSocket):
            _send_records(connected, body, timeout, told)
            return True
        return _send_slices(connected, collections.deque(filter(len, body)), timeout, told)
    finally:
        connected.settimeout(timeout)


def _unheard(count: int) -> None:
    """Take no note."""


def _send_slices(
    connected: socket.socket,
    left: collections.deque[memoryview],
    timeout: float,
    told: Callable[[int], object],
) -> bool:
    while left:
        if _wait(connected, select.POLLIN | select.POLLOUT, timeout) & select.POLLIN:
            return False
        try:
            count = connected.sendmsg(_slice(left))
        except BlockingIOError:
            continue
        _advance(left, count)
        told(count)
    return True


def _slice(left: collections.deque[memoryview]) -> list[memoryview]:
    """Return what is sent next: at most a slice, of at most so many views."""
    chosen, room = [], _SLICE
    for view in left:
        chosen.append(view[:room])
        room -= len(view)
        if room <= 0 or len(chosen) == _MOST_VIEWS:
            break
    return chosen


def _advance(left: collections.deque[memoryview], count: int) -> None:
    while count:
        if count < len(left[0]):
            left[0] = left[0][count:]
            return
        count -= len(left.popleft())


def _send_records(
    connected: ssl.SSLSocket,
    body: Sequence[memoryview],
    timeout: float,
    told: Callable[[int], object],
) -> None:
    """Send record by record.

    What the other side sends meanwhile is left alone: over TLS that may be a session ticket.
    """
    for view in body:
        for start in range(0, len(view), _TOLD):
            slice_ = view[start : start + _TOLD]
            _send_some_records(connected, slice_, timeout)
            told(len(slice_))


def _send_some_records(connected: ssl.SSLSocket, left: memoryview, timeout: float) -> None:
    write = connected.write
    while len(left):
        try:
            left = left[write(left[:_RECORD]) :]
        except ssl.SSLWantWriteError:
            _wait(connected, select.POLLOUT, timeout)
        except ssl.SSLWantReadError:
            _wait(connected, select.POLLIN, timeout)


def await_answer(connected: socket.socket, timeout: float) -> None:
    """Return when an answer begins to come.

    Raises:
        TimeoutError: nothing came, and nothing more was sent, for so long.
    """
    if hasattr(select, "poll"):
        _wait(connected, select.POLLIN, timeout)


def _wait(connected: socket.socket, events: int, timeout: float) -> int:
    """Return what of the events came about, for as long as bytes go on leaving the kernel's buffer.

    Raises:
        TimeoutError: none came about.
    """
    watch = select.poll()
    watch.register(connected, events)
    unsent = sys.maxsize
    while not (ready := watch.poll(timeout * 1000)):
        before, unsent = unsent, _unsent(connected)
        if unsent >= before:
            raise TimeoutError(f"no byte was taken, and none came, for {timeout:g} seconds")
    return ready[0][1]


def _unsent(connected: socket.socket) -> int:
    """Return how many bytes the other side has not acknowledged; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0
    import fcntl
    import termios

    queued = fcntl.ioctl(connected.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(queued, sys.byteorder)
