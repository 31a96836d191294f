"""A second try at a part that is far behind, while there is nothing else to do.

One connection that stalls at the end of a load would hold all of it up for the timeout; in the middle of a
stream, all others while they wait for memory. So once no part can be taken, a connection that is free asks
again for what is left of a part that is late, into memory of its own: two connections never write into one
buffer. Whichever comes first, the other is stopped; `job` says how.
"""

from __future__ import annotations

import collections
import logging
import statistics
import threading
import time
from collections.abc import Collection, Iterable

from torchwick.config import TransferConfig
from torchwick.errors import BusyError, StoreError
from torchwick.store import Connection, Store
from torchwick.transfer.budget import Budget
from torchwick.transfer.job import Job
from torchwick.transfer.plan import MIB, Part
from torchwick.transfer.reader import SLICE, Reader
from torchwick.transfer.retry import TRANSIENT
from torchwick.transfer.steady import SteadyBody

__all__ = ["Racer", "Starter", "is_late"]

_log = logging.getLogger("torchwick")

_SHARE = 0.05  # of what was taken up to now: bytes that races may read twice, besides one part
_LATE = 3.0  # times what a part usually takes
_AT_LEAST = 0.5  # seconds: above the 100 to 200 ms that S3 takes to begin to answer
_RECENT = 100  # parts whose times tell what is usual


def is_late(age: float, size: int, paces: Collection[float]) -> bool:
    """Tell whether a part is so far behind the others that a second request is likely to be faster.

    Args:
        age: seconds that it has been read for.
        size: its bytes.
        paces: seconds a byte that others took, as `Starter` counts them.

    Example:
        >>> [is_late(age, MIB, [0.1 / MIB]) for age in (0.4, 0.6)]
        [False, True]
        >>> is_late(0.6, 16 * MIB, [0.1 / MIB])
        False
    """
    if not paces:
        return False
    return age > max(_AT_LEAST, _LATE * statistics.median(paces) * max(size, MIB))


class Starter:
    """Says which part is raced next, and bounds what all races of a load may read twice.

    Args:
        config: for the memory that races may take.
    """

    def __init__(self, config: TransferConfig) -> None:
        self._config = config
        self._paces: collections.deque[float] = collections.deque(maxlen=_RECENT)
        self._counting = threading.Lock()
        self._taken = self._largest = self._raced = 0

    def took(self, part: Part) -> None:
        """Count a part that is going to be read."""
        with self._counting:
            self._taken += len(part)
            self._largest = max(self._largest, len(part))

    def note(self, part: Part, seconds: float) -> None:
        """Remember how long a part took; one of less than 1 MiB counts as one of 1 MiB."""
        self._paces.append(seconds / max(len(part), MIB))

    def choose(self, jobs: Iterable[Job]) -> Job | None:
        """Return the part to race for now, and count its bytes against the bound."""
        now, paces = time.monotonic(), list(self._paces)
        late = [job for job in jobs if _may_be_raced(job) and is_late(now - job.since, len(job.part), paces)]
        for job in sorted(late, key=lambda job: job.since):
            rest = job.part.stop - job.cursor.position
            if rest <= min(self._left(), self._config.memory_bytes()):
                self._raced += rest
                return job
        return None

    def _left(self) -> int:
        return int(_SHARE * self._taken) + self._largest - self._raced


def _may_be_raced(job: Job) -> bool:
    # A store that is busy is not asked twice, and one without ranges has only the whole object to give.
    return job.part.object.ranged and not job.throttled and job.uncontested


class Racer(Reader):
    """Reads the rest of a part once, into memory of its own.

    Args:
        store: where the object is.
        job: the part.
        config: how.
        budget: told of the bytes that arrive. A failed race costs no retry: the owner goes on.
    """

    def __init__(self, store: Store, job: Job, config: TransferConfig, budget: Budget) -> None:
        super().__init__(store.connect)
        self._job = job
        self._config = config
        self._budget = budget

    def run(self) -> None:
        """Race, and leave the bytes to the part's owner if they are there first."""
        try:
            self._race()
        finally:
            del self._job  # the transfer keeps its readers, and the part's memory may be wanted back

    def _race(self) -> None:
        start = self._job.cursor.position
        with self._connected() as connection:
            if self._stopped.is_set():
                return
            try:
                data = self._read(connection, start)
            except (*TRANSIENT, StoreError, MemoryError) as error:
                connection.reset()
                self.throttled += isinstance(error, BusyError)
                self._job.give_up()
            else:
                self._job.offer(start, data)

    def _read(self, connection: Connection, start: int) -> memoryview:
        part = self._job.part
        _log.info("%s: bytes %d to %d are late: asked for again", part.object.uri, start, part.stop)
        self.tally.requests += 1
        scratch = memoryview(bytearray(part.stop - start))
        body = connection.get(part.object.uri, start, part.stop, part.object)
        try:
            steady, filled = SteadyBody(body, self._config.timeout, self._budget), 0
            while filled < len(scratch):
                count = steady.readinto(scratch[filled : filled + SLICE])
                if count == 0:
                    raise ConnectionResetError("the answer ended early")
                filled += count
                self.tally.bytes_read += count
        finally:
            body.close()
        return scratch
