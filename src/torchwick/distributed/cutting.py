"""Which boxes of elements are read on their own: pure functions of shapes and strides.

A box whose elements lie behind one another both in the object and in the target is read into the target by
the network. Any other is read into memory of its own, and copied from there; so it has to be small, and must
not have wide gaps between its elements in the object.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from torchwick.formats.catalog import span

__all__ = ["Box", "cut"]

_SMALLEST_DIRECT = 256 << 10  # bytes; below, one copy costs less than as many pieces of memory to read into
_LARGEST_COPIED = 16 << 20  # bytes: a part, as large as they come
_LARGEST_GAP = 128 << 10  # bytes that are rather read than asked around: 1.5 ms of a connection at 85 MB/s


@dataclass(frozen=True)
class Box:
    """A box of a box of elements.

    Attributes:
        start: its first element, in each dimension.
        shape: its lengths.
        dense: whether its elements lie behind one another, in the object and in the target.
    """

    start: tuple[int, ...]
    shape: tuple[int, ...]
    dense: bool

    @property
    def where(self) -> tuple[slice, ...]:
        """The index that takes it out of the larger one."""
        return tuple(slice(at, at + n) for at, n in zip(self.start, self.shape, strict=True))


def cut(
    shape: tuple[int, ...],
    stored: tuple[int, ...],
    target: tuple[int, ...] | None,
    width: int,
    most: int = _LARGEST_COPIED,
) -> Iterator[Box]:
    """Cut a box into those that are read on their own.

    Args:
        shape: its lengths.
        stored: elements from one to the next in the object, for each dimension.
        target: the same in the memory that is to hold them; None: nothing can be read into that.
        width: bytes of an element.
        most: bytes from the first element to the last of a box that is copied; of one element, more.

    Example:
        >>> [box.shape for box in cut((4, 1 << 20), (1 << 20, 1), (1 << 20, 1), 4)]
        [(4, 1048576)]
        >>> [(box.shape, box.dense) for box in cut((2, 1 << 20), (1 << 21, 1), (1 << 20, 1), 4)]
        [((1, 1048576), True), ((1, 1048576), True)]
        >>> [(box.shape, box.dense) for box in cut((9, 10), (20, 1), (10, 1), 4)]
        [((9, 10), False)]
    """
    if 0 in shape:
        return
    if target is not None:
        inner = len(shape) - min(_dense(shape, stored), _dense(shape, target))
        if not inner or math.prod(shape[inner:]) * width >= _SMALLEST_DIRECT:
            block = (1,) * inner + shape[inner:]
            for outer in itertools.product(*map(range, shape[:inner])):
                yield Box(outer + (0,) * (len(shape) - inner), block, True)
            return
    copied = _Copied(stored, _LARGEST_GAP // width, max(1, most // width))
    yield from copied.halve((0,) * len(shape), shape)


def _dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many of the last dimensions lie behind one another."""
    step, count = 1, 0
    for length, jump in zip(reversed(shape), reversed(stride), strict=True):
        if length != 1 and jump != step:
            break
        step *= length
        count += 1
    return count


@dataclass(frozen=True)
class _Copied:
    """Cuts what is copied.

    Attributes:
        stride: elements from one to the next in the object.
        gap: elements that may lie between two.
        most: elements from the first to the last.
    """

    stride: tuple[int, ...]
    gap: int
    most: int

    def halve(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Box]:
        """Halve a box along its widest steps until it is small, and has no wide gaps."""
        long = [dim for dim, length in enumerate(shape) if length > 1]
        if not long or (
            span(shape, self.stride) <= self.most and _widest_gap(shape, self.stride) <= self.gap
        ):
            yield Box(start, shape, False)
            return
        dim = max(long, key=lambda dim: self.stride[dim])
        half = shape[dim] // 2
        for first, count in ((0, half), (half, shape[dim] - half)):
            at = (*start[:dim], start[dim] + first, *start[dim + 1 :])
            yield from self.halve(at, (*shape[:dim], count, *shape[dim + 1 :]))


def _widest_gap(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return the most elements that lie between two of the box and are not of it."""
    widest, covered = 0, 1
    for step, length in sorted(zip(stride, shape, strict=True)):
        if length > 1:
            widest = max(widest, step - covered)
            covered = step * (length - 1) + covered
    return widest
