"""What a thread of a transfer has: one line to the store, which any thread may make fail at once."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar

from torchwick.transfer.tally import Tally

__all__ = ["Holder", "Line", "called_back"]


class Line(Protocol):
    """A connection that reads, or one that writes."""

    def reset(self) -> None:
        """Close it; the next request opens a new one."""
        ...

    def abort(self) -> None:
        """From any thread: make the call in progress fail now, and every later one at once."""
        ...

    def release(self) -> None:
        """Leave it to whoever connects next."""
        ...


_Line = TypeVar("_Line", bound=Line)


class Holder(Generic[_Line]):
    """Holds one line while it runs.

    Attributes:
        tally: what it has cost so far.
        there: bytes that it moved for good: unlike in the tally, bytes moved twice count once.
        throttled: how many answers said that the store is busy.

    Args:
        connect: makes the line.
    """

    def __init__(self, connect: Callable[[], _Line]) -> None:
        self.tally = Tally()
        self.there = 0
        self.throttled = 0
        self._connect = connect
        self._stopped = threading.Event()
        self._held = threading.Lock()
        self._line: _Line | None = None

    def run(self) -> None:
        """Go on until there is nothing left to do; called on the holder's own thread."""
        raise NotImplementedError

    @contextmanager
    def _connected(self) -> Iterator[_Line]:
        line = self._line = self._connect()
        try:
            yield line
        finally:
            with self._held:  # from here on the line may serve another transfer
                self._line = None
            line.release()

    def stop(self) -> None:
        """Make the request or the wait in progress end at once, and every later one. From any thread."""
        self._stopped.set()  # first: a line that is made only now is not used
        with self._held:
            if self._line is not None:
                self._line.abort()


def called_back(surplus: collections.deque[bool]) -> bool:
    """Take one of the calls to leave, and tell whether there was one.

    Args:
        surplus: one entry for each holder that is one too many; shared.
    """
    try:
        return surplus.popleft()
    except IndexError:
        return False
