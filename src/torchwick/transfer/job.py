"""One part on its way: how far it came, what went wrong with it, and who reads it."""

from __future__ import annotations

import collections
import threading
import time
from dataclasses import dataclass

from torchwick.config import TransferConfig
from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import Witness
from torchwick.transfer.memory import populate
from torchwick.transfer.plan import Part
from torchwick.transfer.reader import Reader
from torchwick.transfer.retry import Retry

__all__ = ["Cursor", "Job"]

_POPULATED = 32 << 20  # bytes of memory touched while an answer is awaited: more than any chosen part


@dataclass
class Cursor:
    """Where the next byte of a part goes, and what the bytes before it come to.

    Attributes:
        position: the next byte, in the object.
        ahead: the memory that is still to be filled.
        witness: sees what arrives.
        value: the checksum of what is there.
    """

    position: int
    ahead: collections.deque[memoryview]
    witness: Witness
    value: int = 0

    @classmethod
    def at_start(cls, part: Part) -> Cursor:
        """Return the cursor of a part of which nothing is there."""
        return cls(part.start, collections.deque(part.buffers), part.witness)

    def advance(self, count: int) -> None:
        """Go on by so many bytes, at most to the end of the buffer that comes next."""
        self.position += count
        self.value = self.witness.update(self.ahead[0][:count], self.value)
        rest = self.ahead[0][count:]
        if len(rest):
            self.ahead[0] = rest
        else:
            self.ahead.popleft()

    def copy(self, data: memoryview) -> None:
        """Fill what is ahead with `data`."""
        while self.ahead:
            count = len(self.ahead[0])
            self.ahead[0][:], data = data[:count], data[count:]
            self.advance(count)

    def populate(self) -> None:
        """Touch the memory that comes next; not all of a part that is one long stream."""
        room = _POPULATED
        for buffer in self.ahead:
            populate(buffer[:room])
            room -= len(buffer)
            if room <= 0:
                return


class Job:
    """A part that one worker, its owner, reads; a racer may read the rest of it a second time.

    Only the owner's thread ever writes into the part's memory. A racer that comes first leaves its bytes here
    and stops the owner, which copies them once its own read has ended. Whoever is second finds under the lock
    that it is.

    Attributes:
        part: what is read.
        cursor: how far it is.
        retry: the failures so far; they stay with the part, whoever reads it next.
        since: from when on its lateness is counted: its owner began, its throttling ended, or a race failed.
        throttled: whether the store's last answer to it was that it is busy.
        raced: whether a racer came first.
    """

    def __init__(self, part: Part, config: TransferConfig, budget: Budget) -> None:
        self.part = part
        self.cursor = Cursor.at_start(part)
        self.retry = Retry(part.object.uri, part.start, config.max_attempts, budget)
        self.since = 0.0
        self.throttled = False
        self.raced = False
        self._lock = threading.Lock()
        self._owner: Reader | None = None
        self._racer: Reader | None = None
        self._offer: tuple[int, memoryview] | None = None

    @property
    def unread(self) -> bool:
        """Whether bytes are missing that no racer has brought."""
        return bool(self.cursor.ahead) and not self.raced

    @property
    def uncontested(self) -> bool:
        """Whether it has an owner and no racer."""
        return self._owner is not None and self._racer is None

    def restart(self) -> int:
        """Begin again, and return how many bytes that undoes."""
        undone = self.cursor.position - self.part.start
        self.cursor = Cursor.at_start(self.part)
        return undone

    def take(self, owner: Reader) -> None:
        """Become the owner."""
        with self._lock:
            self._owner, self.since = owner, time.monotonic()

    def answered(self) -> None:
        """Note that the store sends bytes: the time for which it asked to be left alone is no lateness."""
        if self.throttled:
            self.since, self.throttled = time.monotonic(), False

    def put_back(self) -> bool:
        """Leave the part to another owner, unless a race for it is on."""
        with self._lock:
            if self._racer is None:
                self._owner = None
            return self._racer is None

    def finish(self) -> int:
        """End as the owner whose reading has ended: stop the racer, or copy what it brought.

        Returns:
            How many bytes were copied.
        """
        with self._lock:
            self._owner = None
            if self._racer is not None and not self.raced:
                self._racer.stop()
        before = self.cursor.position
        if self._offer is not None:
            (start, data), self._offer = self._offer, None
            self.cursor.copy(data[before - start :])
        self.part.witness.arrived(self.part.start, self.part.stop, self.cursor.value)
        return self.cursor.position - before

    def enter(self, racer: Reader) -> bool:
        """Let a racer begin, and tell whether it may: one at a time, and only against an owner."""
        with self._lock:
            free = self.uncontested
            if free:
                self._racer = racer
            return free

    def offer(self, start: int, data: memoryview) -> None:
        """End as the racer that has everything from `start` on; in vain if the owner was first."""
        with self._lock:
            if self._owner is not None:
                self._offer, self.raced = (start, data), True
                self._owner.stop()

    def give_up(self) -> None:
        """End as the racer that failed."""
        with self._lock:
            self._racer, self.since = None, time.monotonic()
