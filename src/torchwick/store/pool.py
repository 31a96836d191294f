"""Lines that stay open between loads, so that the next load skips the handshakes."""

from __future__ import annotations

import os
import ssl
import weakref
from collections.abc import Callable

from torchwick.store.line import Line

__all__ = ["LinePool", "PooledConnection"]

_MOST_IDLE = 64


class LinePool:
    """Idle lines of one store. A process made by fork starts with none: a socket serves one process."""

    def __init__(self, timeout: float, tls: Callable[[], ssl.SSLContext]) -> None:
        self._timeout = timeout
        self._tls = tls
        self._process = os.getpid()
        self._idle: list[Line] = []
        weakref.finalize(self, _close, self._idle)  # when no one uses the store any more, or at exit

    def take(self) -> Line:
        """Return an idle line, or a new one that connects at its first request."""
        if self._process != os.getpid():
            _close(self._idle)  # this process's copies of the sockets: the parent's stay open
            self._process = os.getpid()
        try:
            return self._idle.pop()  # one step, and so safe between threads
        except IndexError:
            return Line(self._timeout, self._tls)

    def give(self, line: Line) -> None:
        """Keep a line for the next load, unless it was aborted or enough are kept."""
        if line.aborted or len(self._idle) >= _MOST_IDLE:
            line.reset()
        else:
            self._idle.append(line)

    def close(self) -> None:
        """Close the lines that are idle now."""
        _close(self._idle)


def _close(idle: list[Line]) -> None:
    while idle:
        idle.pop().reset()


class PooledConnection:
    """A line taken from a pool for one thread, until it is released."""

    def __init__(self, pool: LinePool) -> None:
        self._pool = pool
        self._line = pool.take()
        self.reset = self._line.reset
        self.abort = self._line.abort

    def release(self) -> None:
        """Leave the line to the next load."""
        self._pool.give(self._line)
