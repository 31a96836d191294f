"""Memory that many parts share: bytes that may be held at once, and the wait until some are free."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable

__all__ = ["Ceiling", "ClosedError", "wait_until"]

_LOOK = 1.0  # seconds between looks at the main thread: what the end of the program may be held up for


class ClosedError(Exception):
    """Nothing is given out any more. It ends the generator that asked, and `Gated` ends with it."""


def wait_until(changed: threading.Condition, holds: Callable[[], bool]) -> bool:
    """Wait until `holds` does, and tell whether it did: False once the program has come to its end.

    Python joins its threads when the main one has ended: a thread that waited for a caller who is gone would
    keep the program for ever.

    Args:
        changed: held by the caller, and notified when `holds` may have changed.
        holds: looked at with `changed` held.
    """
    while not holds():
        if not threading.main_thread().is_alive():
            return False
        changed.wait(_LOOK)
    return True


class Ceiling:
    """Bytes that may be held at once, given out in the order in which they are asked for.

    Args:
        limit: how many.

    Example:
        >>> ceiling = Ceiling(100)
        >>> ceiling.take(70)
        >>> ceiling.give(20)
        >>> ceiling.held
        50
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        """Bytes that are given out now."""
        self._changed = threading.Condition()
        self._queue: collections.deque[object] = collections.deque()
        self._closed = False

    def take(self, count: int) -> None:
        """Return when so many bytes are free, and the caller's.

        Raises:
            ValueError: there will never be as many.
            ClosedError: the ceiling was closed, or the program ends.
        """
        if count > self.limit:
            raise ValueError(f"{count} bytes are more than the {self.limit} that may be held at once")
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                self._wait(ticket, count)
                self.held += count
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()

    def _wait(self, ticket: object, count: int) -> None:
        def is_next() -> bool:
            return self._closed or (self._queue[0] is ticket and self.held + count <= self.limit)

        if not wait_until(self._changed, is_next) or self._closed:
            raise ClosedError

    def give(self, count: int) -> None:
        """Give so many bytes back."""
        with self._changed:
            self.held -= count
            self._changed.notify_all()

    def close(self) -> None:
        """Make every `take`, in progress or later, raise. Called from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
