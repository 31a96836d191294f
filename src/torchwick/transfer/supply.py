"""Where a transfer's parts come from: a list of them, or a stream that grows as memory becomes free."""

from __future__ import annotations

import collections
import sys
import threading
from collections.abc import Iterable
from typing import Protocol

from torchwick.transfer.ceiling import Ceiling, ClosedError, wait_until
from torchwick.transfer.plan import Part

__all__ = ["Gated", "Listed", "Supply"]


class Supply(Protocol):
    """Hands out parts to many threads, each part once."""

    def take(self) -> Part | None:
        """Return the next part as soon as it may be read; None: there is none any more."""
        ...

    def close(self) -> None:
        """Make every `take`, in progress or later, return None. Called from any thread."""
        ...

    @property
    def ready(self) -> int:
        """At most how many more threads would find a part now; 0 where those that ask already wait."""
        ...

    @property
    def idle(self) -> int:
        """How many threads wait in `take`."""
        ...


class Listed:
    """Parts that are all known, and may be read at once.

    Args:
        parts: in the order to begin with.
    """

    idle = 0

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = collections.deque(parts)

    def take(self) -> Part | None:
        """Return the next part, or None."""
        try:
            return self._parts.popleft()  # in one step, so that two threads never get the same
        except IndexError:
            return None

    def close(self) -> None:
        """Forget what is left."""
        self._parts.clear()

    @property
    def ready(self) -> int:
        """How many are left."""
        return len(self._parts)


class Gated:
    """Parts that are made one by one, each once there is memory for it.

    What makes them takes their bytes from the ceiling, and so waits for those who give them back. One thread
    at a time asks it; the others wait for their turn. What it raises, `take` raises, and all is over. At the
    end of the program a thread that waits gets None: nobody is left who would give memory back.

    Args:
        parts: what makes them, such as a generator.
        ceiling: what it waits for; closed with the supply.
    """

    def __init__(self, parts: Iterable[Part], ceiling: Ceiling) -> None:
        self._parts = iter(parts)
        self._ceiling = ceiling
        self._changed = threading.Condition()
        self._asked = False
        self._ended = False
        self.idle = 0
        """How many threads wait in `take`."""

    @property
    def ready(self) -> int:
        """Without a bound, unless a thread waits already or all is over."""
        return 0 if self._ended or self.idle else sys.maxsize

    def take(self) -> Part | None:
        """Return the next part, or None; see `Supply.take`."""
        if not self._begin():
            return None
        part = None
        try:
            part = next(self._parts, None)
        except ClosedError:
            pass
        finally:
            self._end(over=part is None)
        return None if self._ended else part

    def _begin(self) -> bool:
        """Wait for one's turn, and tell whether it came."""
        with self._changed:
            self.idle += 1
            if not wait_until(self._changed, lambda: self._ended or not self._asked):
                self._ended = True
            if self._ended:
                self.idle -= 1
                return False
            self._asked = True
            return True

    def _end(self, *, over: bool) -> None:
        with self._changed:
            self.idle -= 1
            self._asked = False
            self._ended = self._ended or over
            self._changed.notify_all()

    def close(self) -> None:
        """Make every `take` return None; see `Supply.close`."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._ceiling.close()  # a generator that another thread runs cannot be closed: what it waits for can
