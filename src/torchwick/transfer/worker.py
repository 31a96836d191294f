"""Reads parts over one connection, straight into the memory they belong in."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

from torchwick.config import TransferConfig
from torchwick.errors import BusyError, StoreError
from torchwick.store import Connection, Store
from torchwick.transfer.budget import Budget
from torchwick.transfer.holder import called_back
from torchwick.transfer.job import Cursor, Job
from torchwick.transfer.plan import Part
from torchwick.transfer.reader import SLICE, Reader
from torchwick.transfer.retry import TRANSIENT
from torchwick.transfer.steady import SteadyBody
from torchwick.transfer.work import Work

__all__ = ["Worker"]


class Worker(Reader):
    """Takes one part after the other, until there are none or it takes one of the calls to leave.

    Args:
        store: where the parts' objects are.
        work: parts that no worker has; shared.
        surplus: one entry for each worker that is one too many; shared.
        finished: told of each part that is done, and the seconds it took; shared.
        config: how.
        budget: what the load may spend on failures; shared.
    """

    def __init__(
        self,
        store: Store,
        work: Work,
        surplus: collections.deque[bool],
        *,
        finished: Callable[[Part, float], None],
        config: TransferConfig,
        budget: Budget,
    ) -> None:
        super().__init__(store.connect)
        self._work = work
        self._surplus = surplus
        self._finished = finished
        self._config = config
        self._budget = budget
        self.job: Job | None = None
        """What it reads now."""

    def run(self) -> None:
        """Read until there is nothing left to do.

        Raises:
            StoreError: a part could not be read.
        """
        with self._connected() as connection:
            while not self._stopped.is_set() and not called_back(self._surplus):
                self.job = self._work.take()
                if self.job is None:
                    break
                self._read(connection, self.job)
                self.job = None  # while it waits for another, this one's memory may be wanted back

    def _read(self, connection: Connection, job: Job) -> None:
        job.take(self)
        while job.unread:
            try:
                self._read_on(connection, job)
            except (*TRANSIENT, StoreError) as error:
                connection.reset()
                if job.raced:
                    break  # it failed because the racer stopped it
                if self._stopped.is_set() or not isinstance(error, TRANSIENT):
                    raise
                self._recover(job, error)
                if job.throttled and called_back(self._surplus) and job.put_back():
                    self._work.put_back(job)
                    return
        self.there += job.finish()
        self._budget.range_arrived()
        self._finished(job.part, time.monotonic() - job.since)

    def _recover(self, job: Job, error: Exception) -> None:
        """Wait until it is time to go on with the part."""
        job.throttled = isinstance(error, BusyError)
        self.throttled += job.throttled
        if not job.part.object.ranged:  # such a server cannot go on where it stopped
            self.there -= job.restart()
        job.retry.failed(error, job.cursor.position, job.part.stop, self._stopped.wait)
        self.tally.retries += not job.raced  # else there is nothing to ask for again

    def _read_on(self, connection: Connection, job: Job) -> None:
        """Ask for what is left of the part, and read it."""
        part, cursor = job.part, job.cursor
        self.tally.requests += 1
        body = connection.get(part.object.uri, cursor.position, part.stop, part.object, cursor.populate)
        job.answered()
        try:
            self._read_body(SteadyBody(body, self._config.timeout, self._budget), cursor)
        finally:
            body.close()

    def _read_body(self, body: SteadyBody, cursor: Cursor) -> None:
        while cursor.ahead:
            count = body.readinto(cursor.ahead[0][:SLICE])
            if count == 0:
                raise ConnectionResetError("the answer ended early")
            cursor.advance(count)
            self.tally.bytes_read += count
            self.there += count
