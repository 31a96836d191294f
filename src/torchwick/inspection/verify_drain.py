"""Reads every byte of a checkpoint's objects past those who look at it, through memory that is used again."""

from __future__ import annotations

import collections
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.verification import PinnedDigest, StoredSums
from torchwick.errors import IntegrityError
from torchwick.inspection.verify_looks import InOrder, Look
from torchwick.store import ObjectInfo
from torchwick.transfer import Ceiling, Gated, Part, Transfer, read_stream

__all__ = ["Passage", "Watched", "drain", "memory_limit"]

_HELD = 256 << 20  # bytes held at once where no limit was given: 32 connections with a part each
_CONNECTIONS = 32  # that shall find memory for a part
_SMALLEST = 64 << 10  # bytes of a part, however little memory there is


@dataclass(frozen=True)
class Watched:
    """Who looks at an object, and what its bytes have to come to.

    Attributes:
        looks: who looks.
        stored: the checksums that the store keeps of it, or None.
        pinned: the caller's digest, or None.
    """

    looks: Sequence[Look]
    stored: StoredSums | None
    pinned: PinnedDigest | None


class Passage:
    """One object, passing by.

    Args:
        info: the object.
        watch: returns who looks; called again where a stream has to begin again.
    """

    def __init__(self, info: ObjectInfo, watch: Callable[[], Watched]) -> None:
        self.info = info
        self.seen = 0
        """Bytes of it that passed."""
        self._watch = watch

    def begin(self, done: Callable[[memoryview], None]) -> None:
        """Begin at the first byte.

        Args:
            done: gets the memory of each stretch back.
        """
        self.watched = self._watch()
        self.seen = 0
        self._done = done
        self._sums = self.watched.stored.witness({}) if self.watched.stored else None
        self._digest = InOrder(done) if self.watched.pinned else None

    @property
    def stops(self) -> Sequence[int]:
        """Offsets that no stretch may reach across."""
        return self.watched.stored.stops if self.watched.stored else ()

    def update(self, data: memoryview, value: int) -> int:
        """Return the checksum of what came before, `value`, and of `data` after it."""
        return value if self._sums is None else self._sums.update(data, value)

    def arrived(self, start: int, data: memoryview, value: int) -> None:
        """Look at a stretch that is there, and whose checksum is `value`."""
        if self._sums is not None:
            self._sums.arrived(start, start + len(data), value)
        for look in self.watched.looks:
            look.see(start, data)
        if self._digest is None:
            self._done(data)
        else:
            self._digest.see(start, data)

    def mismatches(self) -> list[str]:
        """Return what is wrong with its checksums, all of it having passed."""
        stop = self.stops[-1] if self.stops else self.info.size
        if stop is not None and stop != self.seen:
            return [f"it ends at byte {self.seen}, and should at {stop}"]
        problems = []
        try:
            if self.watched.pinned is not None and self._digest is not None:
                self.watched.pinned.compare(self._digest.hexdigest(), self.info.uri)
        except IntegrityError as error:
            problems.append(error.message)
        try:
            if self.watched.stored is not None and self._sums is not None:
                self.watched.stored.check(self._sums, self.info.uri)
        except IntegrityError as error:
            problems.append(error.message)
        return problems


class _Memory:
    """Buffers of one size, within a ceiling, each used by one part at a time, and then again."""

    def __init__(self, limit: int, size: int) -> None:
        self.ceiling = Ceiling(limit)
        self._size = size
        self._free: collections.deque[memoryview] = collections.deque()

    def take(self, count: int) -> memoryview:
        """Return so many bytes, at most the size, once there are some."""
        self.ceiling.take(self._size)
        try:
            return self._free.pop()[:count]
        except IndexError:
            return memoryview(bytearray(self._size))[:count]

    def give(self, data: memoryview) -> None:
        """Take back what was taken."""
        self._free.append(memoryview(data.obj))
        self.ceiling.give(self._size)


class _Witness:
    """Sees one part, and hands it on when it is there."""

    def __init__(self, passage: Passage, data: memoryview) -> None:
        self._passage = passage
        self._data = data
        self.update = passage.update

    def arrived(self, start: int, stop: int, value: int) -> None:  # noqa: ARG002
        """Hand the part on; called on the thread that read it."""
        self._passage.arrived(start, self._data, value)


def drain(passages: Sequence[Passage], objects: Objects, on_progress: Callable[[int, int], object]) -> None:
    """Read every byte of objects.

    Args:
        passages: the objects.
        objects: the checkpoint that they are of; what reading them costs is noted there.
        on_progress: called about ten times a second with (bytes there, connections).

    Raises:
        StoreError: one cannot be read.
    """
    limit = memory_limit(objects)
    ranged = [p for p in passages if p.info.ranged and p.info.size is not None]
    total = sum(p.info.size or 0 for p in ranged)
    size = min(objects.part_size(total), max(limit // _CONNECTIONS, _SMALLEST), limit)
    if ranged:
        memory = _Memory(limit, size)
        supply = Gated(_parts(ranged, memory, size), memory.ceiling)
        objects.spend(Transfer(objects.store, supply, objects.config, on_progress).run())
    for passage in passages:
        if passage not in ranged:
            _stream(passage, objects, total, on_progress)
            total += passage.seen


def memory_limit(objects: Objects) -> int:
    """Return the bytes that may be held at once."""
    limit = objects.config.memory_bytes()
    return min(limit, _HELD) if objects.config.memory_limit == "auto" else limit


def _parts(passages: Sequence[Passage], memory: _Memory, size: int) -> Iterator[Part]:
    """Make parts, each once there is memory for it; called on the threads that read."""
    for passage in passages:
        passage.begin(memory.give)
        for start, stop in _cut(passage.info.size or 0, size, passage.stops):
            data = memory.take(stop - start)
            passage.seen += len(data)
            yield Part(passage.info, start, (data,), _Witness(passage, data))


def _cut(stop: int, size: int, stops: Sequence[int], start: int = 0) -> Iterator[tuple[int, int]]:
    """Cut a range into stretches of at most `size` bytes, none of which reaches across one of the stops.

    Example:
        >>> list(_cut(10, 4, [5]))
        [(0, 4), (4, 5), (5, 9), (9, 10)]
    """
    for edge in [*stops, stop]:
        while start < min(edge, stop):
            end = min(start + size, edge, stop)
            yield start, end
            start = end


def _stream(
    passage: Passage, objects: Objects, before: int, on_progress: Callable[[int, int], object]
) -> None:
    """Read an object of which the server sends all or nothing."""
    sink = cast("BinaryIO", _Sink(passage))

    def check(there: int) -> None:
        on_progress(before + there, 1)

    objects.spend(read_stream(objects.store, passage.info, objects.config, sink, check))


class _Sink(io.RawIOBase):
    """The file that `read_stream` writes into: hands on what comes, and keeps nothing."""

    def __init__(self, passage: Passage) -> None:
        self._passage = passage

    def seek(self, offset: int, whence: int = 0) -> int:  # noqa: ARG002
        """Go back to the beginning, which is where alone it goes."""
        return 0

    def truncate(self, size: int | None = None) -> int:  # noqa: ARG002
        """Begin again."""
        self._passage.begin(lambda _: None)
        return 0

    def tell(self) -> int:
        """Return how many bytes passed."""
        return self._passage.seen

    def write(self, data: memoryview) -> int:  # type: ignore[override]
        """Hand a stretch on."""
        at = self._passage.seen
        for start, stop in _cut(at + len(data), len(data), self._passage.stops, at):
            piece = data[start - at : stop - at]
            self._passage.arrived(start, piece, self._passage.update(piece, 0))
        self._passage.seen = at + len(data)
        return len(data)
