"""What is looked for in the bytes of an object that passes by, stretch by stretch, in any order.

A look sees every byte once, on the threads that read. What it needs whole and comes in several stretches, it
keeps; never more than that.
"""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from torchwick.formats.catalog import Landmark
from torchwick.formats.torch_zip import Archive, Record, derive_starts, header_agrees
from torchwick.transfer import Sums, algorithm

__all__ = ["InOrder", "Landmarks", "Look", "RecordSums", "Torn", "few", "landmarks_of", "overlapping"]

_MOST_TOLD = 8  # of what is wrong with one object


class Look(Protocol):
    """Looks at an object's bytes."""

    def see(self, start: int, data: memoryview) -> None:
        """Look at a stretch that begins at `start`; its memory is used again afterwards."""
        ...


class Torn:
    """Puts small ranges together of which each stretch has a part."""

    def __init__(self) -> None:
        self._held: dict[tuple[int, int], tuple[memoryview, int]] = {}
        self._changing = threading.Lock()

    def add(self, start: int, stop: int, at: int, data: memoryview) -> memoryview | None:
        """Add bytes at `at` to the range ``[start, stop)``, and return it once it is whole."""
        if len(data) == stop - start:
            return data
        with self._changing:
            held = self._held.pop((start, stop), None)
            memory, missing = held or (memoryview(bytearray(stop - start)), stop - start)
            memory[at - start : at - start + len(data)] = data
            missing -= len(data)
            if missing:
                self._held[start, stop] = memory, missing
            return None if missing else memory


def overlapping(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> Iterator[int]:
    """Return which of some ranges a stretch has bytes of.

    Args:
        ranges: half-open, in order, apart from each other.
        start: of the stretch.
        stop: one past its last byte.

    Example:
        >>> list(overlapping([(0, 4), (4, 6), (9, 12)], 5, 10))
        [1, 2]
    """
    at = bisect.bisect_right(ranges, start, key=lambda range_: range_[1])
    while at < len(ranges) and ranges[at][0] < stop:
        yield at
        at += 1


class Landmarks:
    """Looks whether landmarks are where they have to be.

    Args:
        landmarks: those of one object, in any order.
    """

    def __init__(self, landmarks: Iterable[Landmark]) -> None:
        by_start = {landmark.start: landmark for landmark in landmarks}
        self._landmarks = [by_start[start] for start in sorted(by_start)]
        self._ranges = [(landmark.start, landmark.stop) for landmark in self._landmarks]
        self._torn = Torn()
        self._misplaced: list[int] = []

    def see(self, start: int, data: memoryview) -> None:
        """Look at a stretch; see `Look.see`."""
        for which in overlapping(self._ranges, start, start + len(data)):
            landmark = self._landmarks[which]
            first, stop = max(start, landmark.start), min(start + len(data), landmark.stop)
            found = self._torn.add(landmark.start, landmark.stop, first, data[first - start : stop - start])
            if found is not None and not landmark.holds(found):
                self._misplaced.append(landmark.start)

    def problems(self) -> list[str]:
        """Return what was found, all bytes having been seen."""
        places = [f"something else than belongs there is at byte {at}" for at in sorted(self._misplaced)]
        return few(places)


class RecordSums:
    """Sums the stored records of a zip archive, for the CRC-32 that its directory has of each.

    torch.save can be told to compute none; then there is nothing to hold a record against.

    Args:
        archive: the directory.
    """

    def __init__(self, archive: Archive) -> None:
        starts = derive_starts(archive)
        self._records = sorted(
            (r for r in archive.records.values() if r.name in starts and r.size and r.crc32),
            key=lambda record: starts[record.name],
        )
        self._ranges = [(start, start + r.size) for r in self._records for start in [starts[r.name]]]
        self._crc32 = algorithm("crc32")
        self._sums = [Sums(self._crc32) for _ in self._records]

    def __bool__(self) -> bool:
        return bool(self._records)

    def see(self, start: int, data: memoryview) -> None:
        """Sum a stretch; see `Look.see`."""
        for which in overlapping(self._ranges, start, start + len(data)):
            at, end = self._ranges[which]
            first, stop = max(start, at), min(start + len(data), end)
            value = self._crc32.update(data[first - start : stop - start], 0)
            self._sums[which].arrived(first - at, stop - at, value)

    def problems(self) -> list[str]:
        """Return what was found, all bytes having been seen."""
        return few(
            [
                f"record {record.name[:100]!r} has another CRC-32 than the archive's directory says"
                for record, sums in zip(self._records, self._sums, strict=True)
                if sums.folded([record.size]) != [record.crc32]
            ]
        )


class InOrder:
    """Digests stretches in the order of the object.

    SHA-256 does not fold. So whoever brings the stretch that was missing digests all that follow it.

    Args:
        done: gets the memory of a stretch back once it is digested.
    """

    def __init__(self, done: Callable[[memoryview], None]) -> None:
        self._done = done
        self._there: dict[int, memoryview] = {}
        self._at = 0
        self._digest = hashlib.sha256()
        self._digesting = threading.Lock()

    def see(self, start: int, data: memoryview) -> None:
        """Digest a stretch, or keep it until those before it are there."""
        self._there[start] = data
        while self._at in self._there and self._digesting.acquire(blocking=False):
            try:
                while (there := self._there.pop(self._at, None)) is not None:
                    self._digest.update(there)
                    self._at += len(there)
                    self._done(there)
            finally:
                self._digesting.release()

    def hexdigest(self) -> str:
        """Return the digest of all that came."""
        return self._digest.hexdigest()


def landmarks_of(archive: Archive) -> Iterator[Landmark]:
    """Return the local headers of an archive's stored records, as far as the directory tells their place."""
    for name, start in derive_starts(archive).items():
        yield _header(archive.records[name], start)


def _header(record: Record, start: int) -> Landmark:
    return Landmark(record.header, start, lambda header: header_agrees(header, record, start))


def few(problems: Sequence[str]) -> list[str]:
    """Return the first problems of one kind, and how many more there are.

    Example:
        >>> few(["it is torn"] * 10)[-2:]
        ['it is torn', 'and 2 more of the kind']
    """
    more = len(problems) - _MOST_TOLD
    return [*problems[:_MOST_TOLD], *([f"and {more} more of the kind"] if more > 0 else [])]
