"""The senders of a group of uploads: as many as pay, fed from one outbox, watched by the thread that writes.

A writer has no thread to spare for watching. So it looks when it leaves a part to be sent, and while it
waits: senders are started and called back, progress is told, and the first failure is raised.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

from torchwick.config import TransferConfig
from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import Algorithm
from torchwick.transfer.insist import MakeWriter
from torchwick.transfer.meter import Meter
from torchwick.transfer.outbox import Outbox
from torchwick.transfer.pace import Pace, Reading
from torchwick.transfer.sender import Outgoing, Sender
from torchwick.transfer.threads import Threads

__all__ = ["Crew"]

_TICK = 0.1  # seconds between looks at the senders
_AHEAD = 2  # parts for each connection that are held: the next one is there when one was sent
_TELLING = 2  # parts for each connection that have to arrive for a rate


class Crew:
    """Sends parts.

    Args:
        make_writer: makes a connection.
        config: how many of them, and with how much memory.
        secure: whether bytes are encrypted on the way.
        how: sums the parts.
        budget: what the uploads may spend on failures.
        on_progress: called on the calling thread about ten times a second with (bytes sent, connections).

    Attributes:
        connections: the most that were at work at once.
        besides: bytes that were sent by others than the senders, for progress.
    """

    def __init__(
        self,
        make_writer: MakeWriter,
        config: TransferConfig,
        *,
        secure: bool,
        how: Algorithm,
        budget: Budget,
        on_progress: Callable[[int, int], object] | None,
    ) -> None:
        self.connections = 1
        self.besides = 0
        self._make_writer = make_writer
        self._config = config
        self._how = how
        self._budget = budget
        self._on_progress = on_progress
        self._outbox: Outbox[Outgoing] = Outbox()
        self._pace = Pace.of(config.connections, secure=secure)
        self._memory = config.memory_bytes()
        self._meter, self._gauge = Meter(), Meter()
        self._gauged = 0
        self._threads = Threads("write")
        self._surplus: collections.deque[bool] = collections.deque()
        self._senders: list[Sender] = []
        self._running: set[Future[None]] = set()
        self._looked = 0.0

    @property
    def broke_off(self) -> bool:
        """Whether a part was on its way when the senders were stopped."""
        return any(sender.broke_off for sender in self._senders)

    def send(self, job: Outgoing, part_size: int) -> None:
        """Have a part sent; wait until there is room for it.

        Args:
            job: the part.
            part_size: bytes of a whole one.

        Raises:
            StoreError: a part could not be sent, this one or another.
        """
        while not self._outbox.offer(job, job.cut.size, self._room(part_size), _TICK):
            self.look()
        self._start_more()
        self.look()

    def wait(self) -> None:
        """Return when the store has every part.

        Raises:
            StoreError: a part could not be sent.
        """
        while not self._outbox.empty(_TICK):
            self.look()
        self.look(now=True)

    def leave(self) -> None:
        """End every sender that waits for a part; their connections serve what follows."""
        self._outbox.close()
        self._threads.join()

    def stop(self) -> None:
        """End every sender, whatever it does."""
        self._outbox.close()
        for sender in self._senders:
            sender.stop()
        self._threads.join()

    def look(self, *, now: bool = False) -> None:
        """Look at the senders, if it is time to or `now`: raise what went wrong, and adapt their number.

        Raises:
            StoreError: a part could not be sent.
        """
        at = time.monotonic()
        if not now and at - self._looked < _TICK:
            return
        self._looked = at
        for future in [future for future in self._running if future.done()]:
            self._running.remove(future)
            future.result()
        wanted = self._pace.adapt(self._read())
        self._surplus.clear()
        self._surplus.extend([True] * (self._busy - wanted))
        self._start_more()
        if self._on_progress is not None:
            self._on_progress(sum(sender.there for sender in self._senders) + self.besides, self._busy)

    def _room(self, part_size: int) -> int:
        """Return how many bytes may be held that are not sent."""
        return min(self._memory, self._pace.connections * _AHEAD * part_size)

    def _read(self) -> Reading:
        """Return what happened since the last look; a rate only where enough parts arrived to tell one.

        Bytes count as sent when the kernel has them. Over a short while that is the rate at which its buffers
        fill, which every new connection seems to raise.
        """
        now = replace(self._meter.read(self._senders, starved=True), rate=0.0)
        arrived = sum(sender.parts for sender in self._senders)
        if arrived - self._gauged < _TELLING * self._pace.connections:
            return now
        self._gauged = arrived
        gauged = self._gauge.read(self._senders, starved=self._outbox.idle > 0)
        return replace(now, rate=gauged.rate, busy=gauged.busy, starved=gauged.starved)

    @property
    def _busy(self) -> int:
        """How many connections are at work, and not waiting for the caller."""
        return max(0, len(self._running) - self._outbox.idle)

    def _start_more(self) -> None:
        """Start senders, as many as there are parts for and the pace allows."""
        for _ in range(min(self._pace.connections - len(self._running), self._outbox.ready)):
            sender = Sender(
                self._make_writer,
                self._outbox,
                self._surplus,
                how=self._how,
                timeout=self._config.timeout,
                budget=self._budget,
            )
            self._senders.append(sender)
            self._running.add(self._threads.start(sender))
            self.connections = max(self.connections, self._busy)
