"""What is written, cut into parts: lists of views of the caller's memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["LARGEST_OBJECT", "Cut", "Cutter", "parts_of"]

# Amazon S3 user guide, "Amazon S3 multipart upload limits".
_MOST_PARTS = 10_000
_SMALLEST_PART = 5 << 20  # but for the last
_LARGEST_PART = 5 << 30
LARGEST_OBJECT = _MOST_PARTS * _LARGEST_PART
"""Bytes; S3 has a limit of its own, lower and raised from time to time, that it tells when it is met."""

_MIB = 1 << 20
_USUAL = 16 * _MIB  # what Amazon's S3 performance guidelines advise at the most for one request
_SMALL = 16 << 10  # bytes: copying so many costs less than a system call, or a record of TLS


def parts_of(size: int, wanted: int | str = "auto") -> int:
    """Return the bytes of each part of an object, the last of which is shorter.

    Args:
        size: of the object.
        wanted: `TransferConfig.part_size`; as near to it as S3's limits allow.

    Example:
        >>> parts_of(2 << 30) >> 20, parts_of(1 << 40) >> 20, parts_of(100, wanted=1000) >> 20
        (16, 105, 5)
    """
    fewest = -(-size // _MOST_PARTS)
    chosen = wanted if isinstance(wanted, int) else max(_USUAL, -(-fewest // _MIB) * _MIB)
    return min(max(chosen, fewest, _SMALLEST_PART), _LARGEST_PART)


@dataclass
class Cut:
    """One part.

    Attributes:
        number: from 1.
        start: its first byte, in the object.
        size: its bytes.
        views: where they are.
    """

    number: int
    start: int
    size: int
    views: list[memoryview]

    @property
    def stop(self) -> int:
        """One past its last byte."""
        return self.start + self.size


class Cutter:
    """Cuts what is written into parts of one size.

    Large writes are not copied. Small ones that follow each other are joined, by a copy that costs less than
    sending each by itself.

    Args:
        part_size: bytes of each part but the last.

    Example:
        >>> cutter = Cutter(6)
        >>> [(cut.start, b"".join(cut.views)) for data in (b"abcd", b"efghijkl") for cut in cutter.add(data)]
        [(0, b'abcdef'), (6, b'ghijkl')]
    """

    def __init__(self, part_size: int) -> None:
        self._part_size = part_size
        self._cut = Cut(1, 0, 0, [])
        self._joined = bytearray()

    @property
    def written(self) -> int:
        """Bytes that were added."""
        return self._cut.stop + len(self._joined)

    def add(self, data: memoryview | bytes) -> Iterator[Cut]:
        """Append bytes, and yield the parts that they fill."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        while len(view):
            room = self._part_size - self._cut.size - len(self._joined)
            self._append(view[:room])
            if room <= len(view):
                yield self._take()
            view = view[room:]

    def rest(self) -> Cut | None:
        """Return what fills no part, or None where nothing is left."""
        self._seal()
        return self._take() if self._cut.size else None

    def _append(self, view: memoryview) -> None:
        if len(view) < _SMALL:
            self._joined += view
        else:
            self._seal()
            self._cut.views.append(view)
            self._cut.size += len(view)

    def _seal(self) -> None:
        """Make a view of the small writes up to now."""
        if self._joined:
            self._cut.views.append(memoryview(self._joined))
            self._cut.size += len(self._joined)
            self._joined = bytearray()

    def _take(self) -> Cut:
        self._seal()
        cut = self._cut
        self._cut = Cut(cut.number + 1, cut.stop, 0, [])
        return cut
