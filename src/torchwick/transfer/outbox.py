"""Parts that wait to be sent: a bound on their bytes, a writer who waits for room, senders who take."""

from __future__ import annotations

import collections
import threading
import time
from typing import Generic, TypeVar

from torchwick.transfer.ceiling import wait_until

__all__ = ["Outbox"]

_Job = TypeVar("_Job")


class Outbox(Generic[_Job]):
    """A queue between one thread that offers and many that take; bytes count until they are sent."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: collections.deque[_Job] = collections.deque()
        self._held = 0
        self._closed = False
        self.idle = 0
        """How many threads wait in `take`."""

    @property
    def ready(self) -> int:
        """How many jobs wait that no idle thread is about to take."""
        return max(0, len(self._jobs) - self.idle)

    def offer(self, job: _Job, size: int, limit: int, seconds: float) -> bool:
        """Leave a job to be taken; False where its bytes found no room for so many seconds.

        Args:
            job: what is to be sent.
            size: its bytes.
            limit: the most that may be held at once; one job is always taken.
            seconds: how long to wait for room.
        """
        with self._changed:
            if self._held and self._held + size > limit:
                self._changed.wait(seconds)
            if self._held and self._held + size > limit:
                return False
            self._held += size
            self._jobs.append(job)
            self._changed.notify_all()
            return True

    def put_back(self, job: _Job) -> None:
        """Leave a job to another thread, before all others."""
        with self._changed:
            self._jobs.appendleft(job)
            self._changed.notify_all()

    def take(self) -> _Job | None:
        """Return the next job as soon as there is one; None: the outbox was closed, or the program ends."""
        with self._changed:
            self.idle += 1
            try:
                there = wait_until(self._changed, lambda: self._closed or bool(self._jobs))
                return self._jobs.popleft() if there and not self._closed else None
            finally:
                self.idle -= 1

    def done(self, size: int) -> None:
        """Give back the room of a job that was sent."""
        with self._changed:
            self._held -= size
            self._changed.notify_all()

    def empty(self, seconds: float) -> bool:
        """Wait until all is sent, for so many seconds at the most, and tell whether it is."""
        end = time.monotonic() + seconds
        with self._changed:
            while self._held and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return not self._held

    def close(self) -> None:
        """Have every `take`, in progress or later, return None."""
        with self._changed:
            self._closed = True
            self._jobs.clear()
            self._changed.notify_all()
