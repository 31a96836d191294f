"""Runs a plan: connections that read straight into the destination memory, until all of it is there.

Each worker thread owns one connection and takes one part after the other. The calling thread watches,
reports progress and decides on the number of connections. Whatever ends a transfer (the last part, an
error, Ctrl-C), it ends with every connection aborted or idle and every worker joined: no thread is left
that could still write into memory the caller has back.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from torchwick.config import TransferConfig
from torchwick.store import Body, Connection, Store
from torchwick.transfer.memory import populate
from torchwick.transfer.pace import Pace, Reading, cores
from torchwick.transfer.plan import Part
from torchwick.transfer.retry import TRANSIENT, Retry

__all__ = ["Tally", "Transfer"]

_T = TypeVar("_T")

_SLICE = 1 << 20  # bytes of one readinto: what a broken connection may cost in bytes read twice
_POPULATED = 32 << 20  # bytes of memory touched while an answer is awaited: more than any chosen part
_TICK = 0.1  # seconds between looks at the transfer


@dataclass
class Tally:
    """What a load has cost so far. Each worker counts in its own, so that no lock is needed."""

    bytes_read: int = 0
    requests: int = 0
    retries: int = 0
    connections: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.bytes_read + other.bytes_read,
            self.requests + other.requests,
            self.retries + other.retries,
            max(self.connections, other.connections),
        )


@dataclass
class _Cursor:
    """Where the next byte of a part goes."""

    part: Part
    position: int
    ahead: collections.deque[memoryview] = field(default_factory=collections.deque)

    @classmethod
    def at_start(cls, part: Part) -> _Cursor:
        return cls(part, part.start, collections.deque(part.buffers))

    def advance(self, count: int) -> None:
        self.position += count
        rest = self.ahead[0][count:]
        if len(rest):
            self.ahead[0] = rest
        else:
            self.ahead.popleft()

    def populate(self) -> None:
        """Touch the memory that comes next; not all of a part that is one long stream."""
        room = _POPULATED
        for buffer in self.ahead:
            populate(buffer[:room])
            room -= len(buffer)
            if room <= 0:
                return


class Transfer:
    """One run of one plan.

    Args:
        store: where the objects are.
        parts: what to read, in the order to begin with.
        config: how.
        on_progress: called on the calling thread about ten times a second with (bytes there, connections).
    """

    def __init__(
        self,
        store: Store,
        parts: Sequence[Part],
        config: TransferConfig,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._store = store
        self._waiting = collections.deque(parts)
        self._surplus: collections.deque[bool] = collections.deque()
        self._config = config
        self._on_progress = on_progress
        self._cancelled = threading.Event()
        self._workers: list[_Worker] = []

    def run(self) -> Tally:
        """Read every part and return what it took.

        Raises:
            StoreError: a part could not be read. The memory of the parts is then in no defined state.
        """
        if not self._waiting:
            return Tally()
        with ThreadPoolExecutor(len(self._waiting), thread_name_prefix="torchwick-read") as pool:
            try:
                self._watch(pool)
            finally:
                self._cancelled.set()
                for worker in self._workers:
                    worker.abort_if_busy()
        return sum((worker.tally for worker in self._workers), Tally(connections=len(self._workers)))

    def _watch(self, pool: ThreadPoolExecutor) -> None:
        pace = Pace.of(self._config.connections, secure=self._store.secure)
        running = self._start(pool, pace.connections)
        meter = _Meter()
        while not_done := wait(running, timeout=_TICK, return_when=FIRST_EXCEPTION).not_done:
            self._raise_failure(running)
            there = sum(worker.there for worker in self._workers)
            before, after = pace.connections, pace.adapt(meter.read(there))
            self._surplus.extend([True] * (before - after))
            running += self._start(pool, after - before)
            if self._on_progress is not None:
                self._on_progress(there, len(not_done))
        self._raise_failure(running)

    def _start(self, pool: ThreadPoolExecutor, count: int) -> list[Future[None]]:
        """Start so many more workers, as far as there are parts for them."""
        new = [
            _Worker(self._store, self._waiting, self._surplus, self._config, self._cancelled)
            for _ in range(min(count, len(self._waiting)))
        ]
        self._workers += new
        return [pool.submit(worker.run) for worker in new]

    @staticmethod
    def _raise_failure(running: list[Future[None]]) -> None:
        for future in running:
            if future.done():
                future.result()


class _Meter:
    """Turns running totals into readings."""

    def __init__(self) -> None:
        self._there, self._wall, self._processor = 0, time.monotonic(), time.process_time()

    def read(self, there: int) -> Reading:
        wall, processor = time.monotonic(), time.process_time()
        seconds = wall - self._wall
        reading = Reading((there - self._there) / seconds, (processor - self._processor) / seconds / cores())
        self._there, self._wall, self._processor = there, wall, processor
        return reading


def _take(queue: collections.deque[_T]) -> _T | None:
    """Take what is next, or None: in one step, so that two workers never get the same."""
    try:
        return queue.popleft()
    except IndexError:
        return None


class _Worker:
    """Reads parts over one connection until none are waiting, or it takes one of the calls to leave.

    Args:
        store: where the parts' objects are.
        waiting: parts that no worker has taken yet; shared.
        surplus: one entry for each worker that is one too many; shared.
        config: how.
        cancelled: set when the transfer ends, for whatever reason.
    """

    def __init__(
        self,
        store: Store,
        waiting: collections.deque[Part],
        surplus: collections.deque[bool],
        config: TransferConfig,
        cancelled: threading.Event,
    ) -> None:
        self._store = store
        self._waiting = waiting
        self._surplus = surplus
        self._config = config
        self._cancelled = cancelled
        self._busy = threading.Lock()
        self._connection: Connection | None = None
        self.tally = Tally()
        self.there = 0
        """Bytes that have arrived for good: unlike the tally, bytes read twice count once."""

    def run(self) -> None:
        connection = self._connection = self._store.connect()
        try:
            while not self._cancelled.is_set() and not _take(self._surplus):
                part = _take(self._waiting)
                if part is None:
                    break
                self._read_part(connection, part)
        finally:
            with self._busy:  # from here on the connection may serve another transfer
                self._connection = None
            connection.release()

    def abort_if_busy(self) -> None:
        """Make the read in progress fail at once. Called from the watching thread."""
        with self._busy:
            if self._connection is not None:
                self._connection.abort()

    def _read_part(self, connection: Connection, part: Part) -> None:
        retry = Retry(part.object.uri, self._config.max_attempts, self._cancelled.wait)
        cursor = _Cursor.at_start(part)
        while cursor.ahead:
            try:
                self._read_on(connection, cursor)
            except TRANSIENT as error:
                connection.reset()
                if self._cancelled.is_set():
                    raise
                retry.failed(error, cursor.position, part.stop)
                self.tally.retries += 1
                if not part.object.ranged:  # such a server cannot go on where it stopped
                    self.there -= cursor.position - part.start
                    cursor = _Cursor.at_start(part)

    def _read_on(self, connection: Connection, cursor: _Cursor) -> None:
        """Ask for what is left of the part, and read it."""
        part = cursor.part
        self.tally.requests += 1
        body = connection.get(part.object.uri, cursor.position, part.stop, part.object, cursor.populate)
        try:
            self._read_body(body, cursor)
        finally:
            body.close()

    def _read_body(self, body: Body, cursor: _Cursor) -> None:
        while cursor.ahead:
            count = body.readinto(cursor.ahead[0][:_SLICE])
            if count == 0:
                raise ConnectionResetError("the answer ended early")
            cursor.advance(count)
            self.tally.bytes_read += count
            self.there += count
