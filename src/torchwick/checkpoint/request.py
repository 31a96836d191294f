"""What is to be read from a checkpoint's objects, and what has to be found there for it to be believed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torchwick.checkpoint.layout import Group, bridges
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.watch import Watch, Watched
from torchwick.formats.catalog import Landmark
from torchwick.formats.torch_catalog import misplaced
from torchwick.transfer import Fill, Part, Witness, plan

__all__ = ["Request", "wanted"]

_WORTH_A_REQUEST = 128 << 10
"""Bytes of a gap that are rather read than asked around: 1.5 ms of a connection at S3's 85 MB/s."""


class Request:
    """Collects ranges and landmarks of objects, and turns them into parts.

    Args:
        objects: which they are of.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._fills: dict[str, list[Fill]] = {name: [] for name in objects.names}
        self._expected: dict[tuple[str, int], tuple[Landmark, memoryview]] = {}

    def add(self, name: str, fill: Fill) -> None:
        """Want a range of an object, unless it is known already."""
        known = self._objects[name].find(fill.start, fill.stop)
        if known is None:
            self._fills[name].append(fill)
        else:
            fill.buffer[:] = known

    def expect(self, name: str, landmarks: Iterable[Landmark]) -> None:
        """Want to see landmarks of an object that no one has found in their place yet."""
        for landmark in self._objects.unseen(name, landmarks):
            if (name, landmark.start) not in self._expected:
                bytes_ = memoryview(bytearray(landmark.stop - landmark.start))
                self._expected[name, landmark.start] = (landmark, bytes_)
                self.add(name, Fill(landmark.start, bytes_))

    def fills(self, name: str) -> list[Fill]:
        """Return what is to be read of an object, small gaps between included."""
        return _bridged(self._fills[name])

    def parts(self, part_size: int) -> Iterator[Part]:
        """Return the requests that bring it, in the order of the objects and their bytes."""
        for name in self._objects.names:
            yield from plan(self._objects[name].info, self.fills(name), part_size)

    def seen_parts(self, part_size: int, waits: Witness, watches: Mapping[str, Watch]) -> Iterator[Part]:
        """Return the same, told to who waits for it and to who watches over its objects.

        Of an object that is watched over, no byte is read but those that were asked for.
        """
        for name in self._objects.names:
            info, watch = self._objects[name].info, watches.get(name)
            if watch is None:
                yield from plan(info, self.fills(name), part_size, witness=waits)
            else:
                both = Watched(watch.witness, waits)
                yield from plan(info, self._fills[name], part_size, watch.stops, both)

    def check(self) -> None:
        """Look at the landmarks, all bytes being there.

        Raises:
            FormatError: one is not in its place.
        """
        for (name, _), (landmark, bytes_) in self._expected.items():
            if not landmark.holds(bytes_):
                raise misplaced(self._objects[name].info.uri)
            self._objects.saw(name, landmark)


def wanted(name: str, groups: Iterable[Group], objects: Objects) -> list[tuple[int, int]]:
    """Return the half-open ranges of an object that groups want and that are not known, in any order."""
    ranges = set[tuple[int, int]]()
    for region in (region for group in groups for region in group.regions if region.object == name):
        ranges.add((region.start, region.stop))
        ranges.update((mark.start, mark.stop) for mark in objects.unseen(name, region.landmarks))
    return [range_ for range_ in ranges if objects[name].find(*range_) is None]


def _bridged(fills: list[Fill]) -> list[Fill]:
    """Add what lies in small gaps between fills, so that one request reads what is on both sides."""
    ranges = sorted((fill.start, fill.stop) for fill in fills)
    return fills + [
        Fill(start, memoryview(bytearray(stop - start))) for start, stop in bridges(ranges, _WORTH_A_REQUEST)
    ]
