"""What is read ahead of a position that moves on: which parts come next, and in whose memory.

The bytes from the position up to a frontier are there or on their way, in segments. A new part begins at the
frontier. Where a reader waits for what lies there, the part is read into the reader's own memory, and nothing
has to be copied; else into a buffer, from which the reader copies when it comes to it. Buffers are used
again: fresh memory costs more at its first touch than the copy does.
"""

from __future__ import annotations

import collections
import mmap
import threading

from torchwick.store import ObjectInfo
from torchwick.transfer import NoWitness, Part, choose_part_size

__all__ = ["Segment", "Window"]

_LEAST = 256 << 10  # bytes of a part: 3 ms of a connection at the 85 MB/s of S3
_DIRECT = 1 << 20  # bytes that a reader waits for and that are worth a part without a copy
_BUFFERS = 32  # of them within the limit: more than the connections that a machine needs
_SPREAD = 8  # parts that what is wanted is spread over: the connections that a transfer begins with


class Segment(NoWitness):
    """A part, and whether it is there.

    Attributes:
        start: its first byte.
        stop: one past its last.
        buffer: its memory; None where it is the reader's own.
        there: whether all of it arrived.
    """

    def __init__(self, window: Window, start: int, stop: int, buffer: memoryview | None) -> None:
        self._window = window
        self.start = start
        self.stop = stop
        self.buffer = buffer
        self.there = False

    def arrived(self, start: int, stop: int, value: int) -> None:  # noqa: ARG002
        """Take note that it is there; called on the threads that read."""
        self._window.arrived(self)


class Window:
    """The bytes of an object from a position on. Its state is guarded by `changed`.

    Args:
        info: the object.
        size: its bytes.
        part_size: of one part, or ``"auto"``.
        limit: the most bytes of buffers.
    """

    def __init__(self, info: ObjectInfo, size: int, part_size: int | str, limit: int) -> None:
        self.changed = threading.Condition()
        """Notified when parts may be made that could not be before, or a segment is there."""
        self._info = info
        self._size = size
        largest = choose_part_size(size) if isinstance(part_size, str) else part_size
        self._largest = max(1, min(largest, limit // (1 if isinstance(part_size, int) else _BUFFERS)))
        self._buffers = max(1, limit // self._largest)
        self._free: list[memoryview] = []
        self._given = 0
        self._limit = limit
        self._segments: collections.deque[Segment] = collections.deque()
        self._under_way: set[Segment] = set()
        self._position = self._frontier = 0
        self.furthest = 0
        """How far parts were asked for, for the reader that waits or those before it."""
        self._wanted: memoryview | None = None
        self._wanted_stop = 0
        self._target = 0

    @property
    def quiet(self) -> bool:
        """Whether no part is on its way."""
        return not self._under_way

    @property
    def first(self) -> Segment | None:
        """The segment at the position, if it is there."""
        return self._segments[0] if self._segments and self._segments[0].there else None

    @property
    def wanted(self) -> bool:
        """Whether a reader waits."""
        return self._wanted is not None

    def holds(self, at: int) -> bool:
        """Tell whether a byte is there, or on its way."""
        return self._position <= at < self._frontier

    def want(self, at: int, into: memoryview, ahead: int) -> None:
        """Move to `at`, where a reader waits for what it is about to be given."""
        with self.changed:
            self._move(at)
            self.furthest = self._frontier
            self._wanted, self._wanted_stop = into, at + len(into)
            self._target = min(self._size, self._wanted_stop + min(ahead, self._limit))
            if self.room:
                self.changed.notify_all()

    def wait_no_more(self) -> None:
        """Leave the reader's memory alone: no part of it is on its way."""
        with self.changed:
            self._wanted = None

    def _move(self, at: int) -> None:
        if not self.holds(at):
            self._drop(self._frontier)
            self._frontier = at
        self._position = at
        self._drop(at)

    def _drop(self, stop: int) -> None:
        """Give the segments back that stop at `stop` or before; those on their way do it when they arrive."""
        while self._segments and self._segments[0].stop <= stop:
            segment = self._segments.popleft()
            if segment.there:
                self._give_back(segment)

    def consume(self, segment: Segment, stop: int) -> None:
        """Move on to `stop`, within or at the end of the first segment."""
        with self.changed:
            self._position = stop
            if stop == segment.stop:
                self._segments.popleft()
                self._give_back(segment)
                self.changed.notify_all()

    def lose(self) -> None:
        """Go back to the first byte that is missing: what is on its way will not arrive."""
        missing = next((segment for segment in self._segments if not segment.there), None)
        if missing is not None:
            self._frontier = missing.start
            while self._segments and self._segments[-1].stop > missing.start:
                segment = self._segments.pop()
                if segment.there:
                    self._give_back(segment)
        for segment in self._under_way:
            self._give_back(segment)
        self._under_way.clear()

    def clear(self) -> None:
        """Forget everything; nothing is on its way any more."""
        with self.changed:
            self._segments.clear()
            self._under_way.clear()
            self._free.clear()
            self._given = 0
            self._wanted = None
            self._position = self._frontier = self._target = 0

    @property
    def room(self) -> bool:
        """Whether a part can be made now."""
        count = self._target - self._frontier
        if count <= 0 or not (self._is_direct or self._given < self._buffers):
            return False
        wanted = self._wanted is not None and self._frontier < self._wanted_stop
        return wanted or count >= self._count() or self._target == self._size

    @property
    def _is_direct(self) -> bool:
        return self._wanted is not None and self._wanted_stop - self._frontier >= _DIRECT

    def _count(self) -> int:
        """Return the bytes of the next part, unless less is wanted."""
        return min(self._largest, max(_LEAST, (self._target - self._position) // _SPREAD))

    def next_part(self) -> Part:
        """Make the part at the frontier; there has to be room."""
        start, count, buffer = self._frontier, self._count(), None
        if self._wanted is not None and self._is_direct:
            at = len(self._wanted) - (self._wanted_stop - start)
            memory = self._wanted[at : at + count]
        else:
            buffer = self._free.pop() if self._free else memoryview(mmap.mmap(-1, self._largest))
            self._given += 1
            memory = buffer[: min(count, max(_LEAST, self._target - start), self._size - start)]
        segment = Segment(self, start, start + len(memory), buffer)
        self._frontier = self.furthest = segment.stop
        self._segments.append(segment)
        self._under_way.add(segment)
        return Part(self._info, start, (memory,), segment)

    def arrived(self, segment: Segment) -> None:
        """Take note of a segment that is there."""
        with self.changed:
            segment.there = True
            self._under_way.discard(segment)
            if segment not in self._segments:
                self._give_back(segment)
            self.changed.notify_all()

    def _give_back(self, segment: Segment) -> None:
        if segment.buffer is not None:
            self._given -= 1
            self._free.append(segment.buffer)
            segment.buffer = None
