"""Which bytes a part of a tensor needs: pure functions from an index to the runs of elements to be read."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

__all__ = ["Box", "Index", "Runs", "cut", "parse_index", "runs"]

Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]


@dataclass(frozen=True)
class Box:
    """A part of a tensor: for each dimension the first index, how many, and the step between them."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    step: tuple[int, ...]


@dataclass(frozen=True)
class Runs:
    """Equally long stretches of elements, and how the part lies in them, read behind one another.

    Attributes:
        offsets: where each begins, in elements.
        length: elements of each.
        stride: of the part, in elements, over the stretches as they are read.
    """

    offsets: tuple[int, ...]
    length: int
    stride: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements that are read."""
        return len(self.offsets) * self.length


def parse_index(index: Index, shape: tuple[int, ...]) -> tuple[Box, tuple[int, ...]]:
    """Read what stands in the brackets, as torch does for integers, slices and an ellipsis.

    Returns:
        The part, all dimensions kept; and the shape it is shown in, without those of integers.

    Raises:
        IndexError: an integer is out of range, or there are more of them than dimensions.
        TypeError: it is something else, which only a tensor takes.
        ValueError: a step is not positive.

    Example:
        >>> parse_index((2, slice(1, None, 2)), (4, 6))
        (Box(start=(2, 1), shape=(1, 3), step=(1, 2)), (3,))
    """
    items = list(index) if isinstance(index, tuple) else [index]
    if sum(item is Ellipsis for item in items) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    if not any(item is Ellipsis for item in items):  # `in` would ask arrays whether they are equal
        items.append(Ellipsis)
    at = next(at for at, item in enumerate(items) if item is Ellipsis)
    rest = len(shape) - (len(items) - 1)
    if rest < 0:
        raise IndexError(f"too many indices for a tensor of {len(shape)} dimensions")
    items[at : at + 1] = [slice(None)] * rest
    read = [_read(item, length, dim) for dim, (item, length) in enumerate(zip(items, shape, strict=True))]
    start, lengths, step = (tuple(r[i] for r in read) for i in range(3))
    shown = tuple(n for n, item in zip(lengths, items, strict=True) if isinstance(item, slice))
    return Box(start, lengths, step), shown


def _read(item: Any, length: int, dim: int) -> tuple[int, int, int]:
    """Return first index, count and step along one dimension."""
    if isinstance(item, slice):
        first, stop, step = item.indices(length)
        if step <= 0:
            raise ValueError("the step of a slice must be greater than zero")
        return first, len(range(first, stop, step)), step
    if isinstance(item, bool) or not hasattr(item, "__index__"):
        raise TypeError(
            f"a part is read by integers, slices and ..., not by {type(item).__name__}: index the tensor"
        )
    number = operator.index(item)
    if not -length <= number < length:
        raise IndexError(f"index {number} is out of bounds for dimension {dim} with size {length}")
    return number % length, 1, 1


def runs(shape: tuple[int, ...], stride: tuple[int, ...], largest_gap: int) -> Runs:
    """Return the stretches to be read for a part that lies at fixed steps, none of it empty.

    Where the gap between two rows costs less than another request, it is read as well.

    Args:
        shape: lengths of the part.
        stride: elements between neighbours along each dimension.
        largest_gap: elements that are rather read than asked around.

    Example:
        >>> runs((2, 3), (1000, 1), largest_gap=100)
        Runs(offsets=(0, 1000), length=3, stride=(3, 1))
        >>> runs((2, 3), (10, 1), largest_gap=100)
        Runs(offsets=(0,), length=13, stride=(10, 1))
    """
    inner, length = set[int](), 1
    for dim in sorted(range(len(shape)), key=lambda dim: stride[dim]):
        if shape[dim] > 1 and stride[dim] - length > largest_gap:
            break
        inner.add(dim)
        length += (shape[dim] - 1) * stride[dim]
    outer = sorted(set(range(len(shape))) - inner, key=lambda dim: -stride[dim])
    steps = itertools.product(*([at * stride[dim] for at in range(shape[dim])] for dim in outer))
    packed = list(stride)
    for at, dim in enumerate(outer):
        packed[dim] = length * math.prod(shape[later] for later in outer[at + 1 :])
    return Runs(tuple(map(sum, steps)), length, tuple(packed))


def cut(box: Box, dim: int) -> Iterator[Box]:
    """Cut a part in two along one dimension."""
    half = box.shape[dim] // 2
    for first, count in ((0, half), (half, box.shape[dim] - half)):
        start = box.start[dim] + first * box.step[dim]
        yield Box(
            (*box.start[:dim], start, *box.start[dim + 1 :]),
            (*box.shape[:dim], count, *box.shape[dim + 1 :]),
            box.step,
        )
