"""Notices a connection that still moves bytes, but so slowly that another is better.

A socket's timeout does not: every byte starts it anew. So bytes are counted over windows of the timeout's
length. The floor is absolute and tiny. A line that is slow for everyone never falls below it, so that no
connection is replaced by one that cannot be faster; one that is merely slower than its neighbours is raced at
the end of the load (see `race`).
"""

from __future__ import annotations

import time

from torchwick.store import Body
from torchwick.transfer.budget import Budget

__all__ = ["Outflow", "SteadyBody", "TooSlowError"]

_FLOOR = 1024  # bytes a second: 8 connections on a modem's line of 64 kbit/s


class TooSlowError(ConnectionAbortedError):
    """A connection moved less than the floor: as good as nothing."""


class SteadyBody:
    """A body whose bytes have to come at no less than the floor.

    Args:
        body: what to read; it returns from each read after about `timeout` seconds, with what has arrived.
        timeout: seconds of a window.
        budget: told of every arrival.
    """

    def __init__(self, body: Body, timeout: float, budget: Budget) -> None:
        self._body = body
        self._timeout = timeout
        self._budget = budget
        self._since = self._now = time.monotonic()
        self._count = 0

    def readinto(self, buffer: memoryview) -> int:
        """Read into `buffer`; 0 at the end.

        Raises:
            TooSlowError: too few bytes came in the window before. Never for the bytes that were the last.
        """
        if self._now - self._since >= self._timeout:
            self._begin_window()
        count = self._body.readinto(buffer)
        self._now = time.monotonic()
        self._count += count
        if count:
            self._budget.byte_arrived(self._now)
        return count

    def _begin_window(self) -> None:
        seconds = self._now - self._since
        if self._count < _FLOOR * seconds:
            raise TooSlowError(f"only {self._count} bytes came in {seconds:.1f} seconds")
        self._since, self._count = self._now, 0


class Outflow:
    """Bytes that are sent, which have to go at no less than the floor.

    Args:
        timeout: seconds of a window.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._since = time.monotonic()
        self._count = 0

    def went(self, count: int, now: float) -> None:
        """Count bytes that went out `now`, by the monotonic clock.

        Raises:
            TooSlowError: they, and those before them, were too few for the time they took.
        """
        self._count += count
        seconds = now - self._since
        if seconds < self._timeout:
            return
        if self._count < _FLOOR * seconds:
            raise TooSlowError(f"only {self._count} bytes were taken in {seconds:.1f} seconds")
        self._since, self._count = now, 0
