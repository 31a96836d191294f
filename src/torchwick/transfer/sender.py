"""Sends parts over one connection, straight from the memory they are in."""

from __future__ import annotations

import collections
import time
from dataclasses import dataclass, field

from torchwick.errors import BusyError, StoreError
from torchwick.store import Multipart, StoredPart, Writer
from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import Algorithm, Piece
from torchwick.transfer.cutting import Cut
from torchwick.transfer.holder import Holder, called_back
from torchwick.transfer.insist import MakeWriter
from torchwick.transfer.outbox import Outbox
from torchwick.transfer.retry import TRANSIENT, Retry
from torchwick.transfer.steady import Outflow

__all__ = ["Arrivals", "Outgoing", "Sender"]

_BLOCKED = 0.1  # seconds: whoever waits longer for a part waits for the caller, not for the store


@dataclass
class Arrivals:
    """What the store has of one upload; noted by the threads that send it.

    Attributes:
        parts: in the order in which they arrived.
        pieces: what they come to.
        failures: requests that failed, and were sent again.
    """

    parts: list[StoredPart] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    failures: int = 0


@dataclass
class Outgoing:
    """A part on its way.

    Attributes:
        multipart: the upload it is of.
        cut: its bytes.
        arrivals: where it is noted once the store has it.
        retry: the failures so far.
    """

    multipart: Multipart
    cut: Cut
    arrivals: Arrivals
    retry: Retry


class Sender(Holder[Writer]):
    """Takes one part after the other, until the outbox is closed or it takes one of the calls to leave.

    Attributes:
        parts: how many parts it sent.

    Args:
        make_writer: makes the connection.
        outbox: parts that no sender has; shared.
        surplus: one entry for each sender that is one too many; shared.
        how: sums the parts.
        timeout: `TransferConfig.timeout`.
        budget: what the upload may spend on failures; shared.
    """

    def __init__(
        self,
        make_writer: MakeWriter,
        outbox: Outbox[Outgoing],
        surplus: collections.deque[bool],
        *,
        how: Algorithm,
        timeout: float,
        budget: Budget,
    ) -> None:
        super().__init__(make_writer)
        self.parts = 0
        self.broke_off = False
        """Whether it was stopped in the middle of a part."""
        self._outbox = outbox
        self._surplus = surplus
        self._how = how
        self._timeout = timeout
        self._outflow = Outflow(timeout)
        self._budget = budget

    def run(self) -> None:
        """Send until there is nothing left to do.

        Raises:
            StoreError: a part could not be sent.
        """
        with self._connected() as writer:
            while not self._stopped.is_set() and not called_back(self._surplus):
                asked = time.monotonic()
                job = self._outbox.take()
                if job is None:
                    break
                if time.monotonic() - asked > _BLOCKED:
                    self._budget.begin()
                if not self._send(writer, job):
                    break

    def _send(self, writer: Writer, job: Outgoing) -> bool:
        """Send a part; return False where it was put back, because this sender is one too many."""
        cut = job.cut
        value = self._sum(cut) if job.multipart.checksummed else None
        while True:
            before = self.there
            try:
                self.tally.requests += 1
                self._outflow = Outflow(self._timeout)
                part = writer.put_part(job.multipart, cut.number, cut.views, value, self._sent)
            except (*TRANSIENT, StoreError) as error:
                writer.reset()
                self.there = before
                self._recover(job, error)
                if isinstance(error, BusyError) and called_back(self._surplus):
                    self._outbox.put_back(job)
                    return False
            else:
                self.there = before + cut.size
                self._arrived(job, part, value)
                return True

    def _sum(self, cut: Cut) -> int:
        value = 0
        for view in cut.views:
            value = self._how.update(view, value)
        return value

    def _arrived(self, job: Outgoing, part: StoredPart, value: int | None) -> None:
        self._budget.byte_arrived(time.monotonic())
        self._budget.range_arrived()
        job.arrivals.parts.append(part)
        self.parts += 1
        if value is not None:
            job.arrivals.pieces.append(Piece(job.cut.start, job.cut.stop, value))
        job.cut.views.clear()  # their memory may be wanted back
        self._outbox.done(job.cut.size)

    def _sent(self, count: int) -> None:
        now = time.monotonic()
        self.there += count
        self._outflow.went(count, now)
        self._budget.byte_arrived(now)

    def _recover(self, job: Outgoing, error: Exception) -> None:
        """Wait until it is time to send the part again.

        Raises:
            StoreError: it is not to be sent again.
            OSError: the upload was ended.
        """
        if self._stopped.is_set():
            self.broke_off = True
            raise error
        if not isinstance(error, TRANSIENT):
            raise error
        self.throttled += isinstance(error, BusyError)
        job.arrivals.failures += 1
        job.retry.failed(error, job.cut.start, job.cut.stop, self._stopped.wait)
        self.tally.retries += 1
