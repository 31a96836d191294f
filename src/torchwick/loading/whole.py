"""Completes what is wanted of an object to all of it: a checksum is of every byte."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torchwick.transfer import Fill, RangeCache

__all__ = ["Range", "Whole", "complete"]

Range = tuple[int, int]
"""A half-open range of an object."""


@dataclass(frozen=True)
class Whole:
    """What there is to an object besides what is wanted.

    Attributes:
        missing: what no one wants but whoever verifies, and is not known.
        known: what was read before, by its start.
        again: what was read before, and other memory that it is, or was, read into once more.
    """

    missing: list[Range] = field(default_factory=list)
    known: dict[int, tuple[memoryview, ...]] = field(default_factory=dict)
    again: list[tuple[memoryview, memoryview]] = field(default_factory=list)

    @property
    def extra(self) -> int:
        """Bytes that are missing."""
        return sum(stop - start for start, stop in self.missing)

    def fills(self, wanted: Sequence[Fill], *, ranged: bool) -> tuple[Whole, list[Fill]]:
        """Return what reads all that is not known, and what is then known.

        A server without ranges sends everything from byte 0, and so what is known as well.
        """
        rest = [Fill(start, memoryview(bytearray(stop - start))) for start, stop in self.missing]
        if ranged or not (wanted or rest):
            return self, [*wanted, *rest]
        repeated = [(Fill(at, memoryview(bytearray(len(d)))), d) for at, (d,) in self.known.items()]
        again = [(data, fill.buffer) for fill, data in repeated]
        whole = Whole(self.missing, {}, self.again + again)
        return whole, [*wanted, *rest, *(fill for fill, _ in repeated)]


def complete(
    wanted: Iterable[Range], cache: RangeCache, size: int | None, stops: Sequence[int]
) -> Whole | None:
    """Return what is known and what is missing of an object, besides what is wanted.

    Args:
        wanted: in any order.
        cache: what is known.
        size: bytes of the object.
        stops: offsets that no known range may reach across.

    Returns:
        None where the size is not known, or what is wanted overlaps.
    """
    ordered = sorted(range_ for range_ in wanted if range_[0] < range_[1])
    starts, ends = [start for start, _ in ordered], [stop for _, stop in ordered]
    if size is None or any(end > start for end, start in zip(ends, [*starts[1:], size], strict=bool(ends))):
        return None
    whole = Whole(again=cache.overlaps())
    for start, stop in zip([0, *ends], [*starts, size], strict=True):
        for first, last in _pieces(start, stop, cache, stops):
            known = cache.find(first, last)
            if known is None:
                whole.missing.append((first, last))
            else:
                whole.known[first] = (known,)
    return whole


def _pieces(start: int, stop: int, cache: RangeCache, stops: Sequence[int]) -> Iterator[Range]:
    """Cut a gap where what the cache knows of it begins and ends, and at the stops."""
    within = stops[bisect.bisect(stops, start) : bisect.bisect(stops, stop)]
    return itertools.pairwise(sorted({start, stop, *within, *cache.edges(start, stop)}))
