"""Checksums of pieces that arrive in any order, folded into the checksum of the whole.

The three are cyclic redundancy checks, for which the checksum of two pieces follows from the checksums of
each and the length of the second; so each piece is summed while it is still in the processor's cache, on the
thread that read it.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["NO_WITNESS", "Algorithm", "Digest", "NoWitness", "Piece", "Sums", "Witness", "algorithm", "fold"]


@dataclass(frozen=True)
class Algorithm:
    """A checksum that folds.

    Attributes:
        name: S3's name, in small letters.
        update: (bytes, checksum of what lies before) -> checksum of both.
        combine: (checksum of the first, checksum of the second, bytes of the second) -> checksum of both.
    """

    name: str
    update: Callable[[bytes | memoryview, int], int]
    combine: Callable[[int, int, int], int]


def algorithm(name: str) -> Algorithm:
    """Return an algorithm by its name: ``"crc64nvme"``, ``"crc32c"`` or ``"crc32"``."""
    from awscrt import checksums  # here: a load that is not verified need not wait 30 ms for it

    return Algorithm(name, getattr(checksums, name), getattr(checksums, f"combine_{name}"))


@dataclass(frozen=True, order=True)
class Piece:
    """The checksum of a half-open range of an object."""

    start: int
    stop: int
    value: int


def fold(pieces: Iterable[Piece], stops: Iterable[int], how: Algorithm) -> list[int] | None:
    """Return the checksums of the stretches that end at `stops`, or None where the pieces leave gaps.

    Args:
        pieces: in any order; none may reach across one of the stops.
        stops: where each stretch ends, and the next begins; the first begins at 0.
        how: whose checksums they are.

    Example:
        >>> crc = algorithm("crc32")
        >>> halves = [Piece(4, 9, crc.update(b"56789", 0)), Piece(0, 4, crc.update(b"1234", 0))]
        >>> [hex(value) for value in fold(halves, [9], crc)]
        ['0xcbf43926']
    """
    ordered = iter(sorted(pieces))
    at, values = 0, list[int]()
    for stop in stops:
        value = 0
        while at < stop:
            piece = next(ordered, None)
            if piece is None or piece.start != at or piece.stop > stop:
                return None
            value = how.combine(value, piece.value, piece.stop - piece.start)
            at = piece.stop
        values.append(value)
    return values


class Witness(Protocol):
    """Sees what a transfer brings, on the threads that bring it."""

    def update(self, data: memoryview, value: int) -> int:
        """Return the checksum of what came before, `value`, and of `data` after it."""
        ...

    def arrived(self, start: int, stop: int, value: int) -> None:
        """Take note of a range that is there for good, and its checksum."""
        ...


class NoWitness:
    """Sees nothing."""

    def update(self, data: memoryview, value: int) -> int:  # noqa: ARG002
        """Return 0."""
        return value

    def arrived(self, start: int, stop: int, value: int) -> None:
        """Take no note."""


NO_WITNESS = NoWitness()


class Sums:
    """Witnesses a transfer: sums every part, and folds the sums.

    Args:
        how: by which algorithm.
    """

    def __init__(self, how: Algorithm) -> None:
        self._how = how
        self._pieces: list[Piece] = []
        self.update = how.update

    def arrived(self, start: int, stop: int, value: int) -> None:
        """Take note of a range that is there, and its checksum."""
        self._pieces.append(Piece(start, stop, value))

    @property
    def pieces(self) -> list[Piece]:
        """What was seen so far."""
        return list(self._pieces)

    def folded(self, stops: Iterable[int]) -> list[int] | None:
        """Return the checksums of the stretches that end at `stops`; see `fold`."""
        return fold(self._pieces, stops, self._how)


class Digest:
    """Witnesses a transfer: digests the object in order, as far as it is there from the start.

    SHA-256 does not fold. So whoever brings the range that was missing digests all that follows it, while the
    others read on.

    Args:
        ranges: the memory of every range of the object, by its start.
    """

    def __init__(self, ranges: Mapping[int, Sequence[memoryview]]) -> None:
        self._ranges = ranges
        self._there: set[int] = set()
        self._at = 0
        self._digest = hashlib.sha256()
        self._digesting = threading.Lock()

    def update(self, data: memoryview, value: int) -> int:  # noqa: ARG002
        """Leave slices alone: they do not come in order."""
        return value

    def arrived(self, start: int, stop: int, value: int) -> None:  # noqa: ARG002
        """Take note of a range that is there, and digest what can be."""
        self._there.add(start)
        while self._at in self._there and self._digesting.acquire(blocking=False):
            try:
                while self._at in self._there:
                    self._at += self._feed(self._at)
            finally:
                self._digesting.release()

    def _feed(self, start: int) -> int:
        for buffer in self._ranges[start]:
            self._digest.update(buffer)
        return sum(map(len, self._ranges[start]))

    def hexdigest(self) -> str:
        """Return the digest, of all that came."""
        return self._digest.hexdigest()
