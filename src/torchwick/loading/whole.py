"""Completes what a format wants of an object to all of it: a checksum is of every byte."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchwick.transfer import Fill, RangeCache

__all__ = ["Whole", "complete"]


@dataclass(frozen=True)
class Whole:
    """Every byte of an object, once.

    Attributes:
        fills: what is to be read.
        known: what was read before, by its start.
        extra: bytes of `fills` that no one wants but whoever verifies.
        again: what was read before, and other memory that it is, or was, read into once more.
    """

    fills: list[Fill]
    known: dict[int, tuple[memoryview, ...]]
    extra: int
    again: list[tuple[memoryview, memoryview]]

    def as_one_stream(self) -> Whole:
        """Return the same for a server that sends everything from byte 0, and so what is known as well."""
        repeated = [(Fill(at, memoryview(bytearray(len(d)))), d) for at, (d,) in self.known.items()]
        again = [(data, fill.buffer) for fill, data in repeated]
        return Whole([*self.fills, *(fill for fill, _ in repeated)], {}, self.extra, self.again + again)


def complete(
    fills: Sequence[Fill], cache: RangeCache, size: int | None, stops: Sequence[int]
) -> Whole | None:
    """Return the whole object as what is wanted, what is known, and what is missing.

    Args:
        fills: what is wanted, in any order.
        cache: what is known.
        size: bytes of the object.
        stops: offsets that no known range may reach across.

    Returns:
        None where the size is not known, or what is wanted overlaps.
    """
    ordered = sorted((fill for fill in fills if len(fill.buffer)), key=lambda fill: fill.start)
    starts, ends = [fill.start for fill in ordered], [fill.stop for fill in ordered]
    if size is None or any(end > start for end, start in zip(ends, [*starts[1:], size], strict=bool(ends))):
        return None
    whole = Whole(list(ordered), {}, 0, [])
    extra = 0
    for start, stop in zip([0, *ends], [*starts, size], strict=True):
        for piece in _pieces(start, stop, cache, stops):
            if isinstance(piece, Fill):
                whole.fills.append(piece)
                extra += len(piece.buffer)
            else:
                at, data = piece
                whole.known[at] = (data,)
    whole = Whole(whole.fills, whole.known, extra, cache.overlaps())
    return whole if cache.info.ranged or not whole.fills else whole.as_one_stream()


def _pieces(
    start: int, stop: int, cache: RangeCache, stops: Sequence[int]
) -> Iterator[Fill | tuple[int, memoryview]]:
    """Cover a gap by what the cache has of it, and by fills of memory of their own."""
    within = stops[bisect.bisect(stops, start) : bisect.bisect(stops, stop)]
    edges = sorted({start, stop, *within, *cache.edges(start, stop)})
    for first, last in itertools.pairwise(edges):
        known = cache.find(first, last)
        yield Fill(first, memoryview(bytearray(last - first))) if known is None else (first, known)
