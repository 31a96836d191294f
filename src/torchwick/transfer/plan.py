"""Pure functions from what is wanted to the requests that bring it.

A `Fill` is one range of an object and the memory it belongs in. A `Part` is one request: neighbouring
fills joined, large ones split. Nothing here moves a byte.
"""

from __future__ import annotations

import bisect
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torchwick.store import ObjectInfo
from torchwick.transfer.checksum import NO_WITNESS, Witness

__all__ = ["Fill", "Part", "choose_part_size", "plan"]

MIB = 1 << 20


@dataclass(frozen=True)
class Fill:
    """The bytes of an object from `start` on, and the memory they belong in.

    Attributes:
        start: offset of the first byte in the object.
        buffer: writable bytes, as many as are wanted.
    """

    start: int
    buffer: memoryview

    @property
    def stop(self) -> int:
        """One past the last byte."""
        return self.start + len(self.buffer)


@dataclass(frozen=True)
class Part:
    """One request's bytes, and the pieces of memory they go to, in order and without gaps.

    Attributes:
        object: the object they are read from.
        start: offset of the first byte in the object.
        buffers: the memory.
        witness: sees the bytes, and is told when all are there, on the thread that reads.
    """

    object: ObjectInfo
    start: int
    buffers: tuple[memoryview, ...]
    witness: Witness = NO_WITNESS

    @property
    def stop(self) -> int:
        """One past the last byte."""
        return self.start + sum(map(len, self.buffers))

    def __len__(self) -> int:
        return self.stop - self.start


def choose_part_size(total: int) -> int:
    """Return the bytes of a part for a load of `total` bytes: see `TransferConfig.part_size`.

    Example:
        >>> choose_part_size(1 << 30) == 16 << 20
        True
    """
    return min(max(total // 32, 4 * MIB), 16 * MIB)


def plan(
    object_: ObjectInfo,
    fills: Iterable[Fill],
    part_size: int | Literal["auto"] = "auto",
    stops: Sequence[int] = (),
    witness: Witness = NO_WITNESS,
) -> list[Part]:
    """Join fills that touch and split what is larger than a part.

    Args:
        object_: the object they are read from. One that answers no ranges becomes a single part, which
            reads from byte 0 and throws away what lies between the fills.
        fills: ranges that do not overlap, in any order.
        part_size: bytes, or ``"auto"``.
        stops: offsets, in order, that no part may reach across.
        witness: sees the bytes of every part; by default no one does.

    Returns:
        Parts in the order of the object.

    Example:
        >>> info = ObjectInfo(uri=None, size=10)
        >>> parts = plan(info, [Fill(4, memoryview(bytearray(6))), Fill(0, memoryview(bytearray(4)))], 8)
        >>> [(part.start, part.stop, len(part.buffers)) for part in parts]
        [(0, 8, 2), (8, 10, 1)]
    """
    ordered = sorted((fill for fill in fills if len(fill.buffer)), key=lambda fill: fill.start)
    if not object_.ranged:
        return _one_stream(object_, ordered, witness)
    size = choose_part_size(sum(len(fill.buffer) for fill in ordered)) if part_size == "auto" else part_size
    return [
        Part(object_, start, buffers, witness)
        for run in _runs(_cut(ordered, stops), frozenset(stops))
        for start, buffers in _split(run, size)
    ]


def _cut(ordered: list[Fill], stops: Sequence[int]) -> Iterator[Fill]:
    """Cut fills in two where one of the stops lies within."""
    for fill in ordered:
        start, rest = fill.start, fill.buffer
        for stop in stops[bisect.bisect_right(stops, start) : bisect.bisect_left(stops, fill.stop)]:
            yield Fill(start, rest[: stop - start])
            start, rest = stop, rest[stop - start :]
        yield Fill(start, rest)


def _runs(ordered: Iterable[Fill], stops: Container[int]) -> list[list[Fill]]:
    """Group fills that touch, with no stop between them."""
    runs: list[list[Fill]] = []
    for fill in ordered:
        if runs and runs[-1][-1].stop == fill.start and fill.start not in stops:
            runs[-1].append(fill)
        else:
            runs.append([fill])
    return runs


def _split(run: list[Fill], size: int) -> Iterator[tuple[int, tuple[memoryview, ...]]]:
    """Cut one gapless run into pieces of `size` bytes, the last one shorter: (start, memory) of each."""
    start, room, buffers = run[0].start, size, list[memoryview]()
    for fill in run:
        rest = fill.buffer
        while len(rest):
            piece, rest = rest[:room], rest[room:]
            buffers.append(piece)
            room -= len(piece)
            if room == 0:
                yield start, tuple(buffers)
                start, room, buffers = start + size, size, []
    if buffers:
        yield start, tuple(buffers)


def _one_stream(object_: ObjectInfo, ordered: list[Fill], witness: Witness) -> list[Part]:
    buffers: list[memoryview] = []
    position = 0
    for fill in ordered:
        if fill.start > position:
            buffers.append(memoryview(bytearray(fill.start - position)))
        buffers.append(fill.buffer)
        position = fill.stop
    return [Part(object_, 0, tuple(buffers), witness)] if buffers else []
