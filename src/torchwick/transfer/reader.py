"""What a thread that reads has, whether it reads for a part or races for one: a connection to be aborted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torchwick.store import Connection, Store
from torchwick.transfer.tally import Tally

__all__ = ["SLICE", "Reader"]

SLICE = 1 << 20
"""Bytes of one readinto: what a broken connection may cost in bytes read twice."""


class Reader:
    """Holds one connection, which any thread may make fail at once.

    Attributes:
        tally: what it has cost so far.
        there: bytes that it brought for good: unlike in the tally, bytes read twice count once.
        throttled: how many answers said that the store is busy.
    """

    def __init__(self, store: Store) -> None:
        self.tally = Tally()
        self.there = 0
        self.throttled = 0
        self._store = store
        self._stopped = threading.Event()
        self._held = threading.Lock()
        self._connection: Connection | None = None

    def run(self) -> None:
        """Read until there is nothing left to do; called on the reader's own thread."""
        raise NotImplementedError

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        connection = self._connection = self._store.connect()
        try:
            yield connection
        finally:
            with self._held:  # from here on the connection may serve another transfer
                self._connection = None
            connection.release()

    def stop(self) -> None:
        """Make the read or the wait in progress end at once, and every later one. Called from any thread."""
        self._stopped.set()  # first: a connection that is made only now is not used
        with self._held:
            if self._connection is not None:
                self._connection.abort()
