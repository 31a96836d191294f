"""Cuts tensors into fragments, each of which is read, cast and moved for itself: memory for one is enough."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torchwick.formats.catalog import Catalog, Packed, Piece, TensorEntry, contiguous
from torchwick.formats.dtypes import DTYPES

__all__ = ["Fragment", "boxes", "fragments"]


@dataclass(frozen=True)
class Fragment:
    """A box of a tensor's elements.

    Attributes:
        name: the tensor's.
        where: the box; None: all of it.
    """

    name: str
    where: tuple[slice, ...] | None


def fragments(catalog: Catalog, whole: Collection[str], size: int) -> tuple[Catalog, dict[str, Fragment]]:
    """Return a catalog of fragments, and which tensors those are of.

    Args:
        catalog: the tensors.
        whole: names of tensors that are not to be cut.
        size: bytes of a fragment; of one that lies in no single stretch of bytes, more.
    """
    entries: dict[str, TensorEntry] = {}
    of: dict[str, Fragment] = {}
    for name, entry in catalog.entries.items():
        uncut = name in whole or not entry.nbytes or DTYPES[entry.dtype].bits < 8
        for where, fragment in [(None, entry)] if uncut else _of_pieces(entry, size):
            key = f"{len(of)}:{name}"  # no two are alike, whatever the tensors are called
            entries[key] = fragment
            of[key] = Fragment(name, where)
    return replace(catalog, entries=entries), of


def _of_pieces(entry: TensorEntry, size: int) -> Iterator[tuple[tuple[slice, ...], TensorEntry]]:
    for piece in entry.pieces:
        origin = piece.origin or (0,) * len(piece.shape)
        if isinstance(piece, Packed) or piece.stride != contiguous(piece.shape):
            alone: tuple[Any] = (replace(piece, origin=()),)
            yield _box(origin, piece.shape), replace(entry, shape=piece.shape, pieces=alone)
            continue
        for start, shape in boxes(piece.shape, size * 8 // DTYPES[entry.dtype].bits):
            part = _part(piece, entry.dtype, start, shape)
            at = tuple(a + b for a, b in zip(origin, start, strict=True))
            yield _box(at, shape), replace(entry, shape=shape, pieces=(part,))


def _part(piece: Piece, dtype: str, start: tuple[int, ...], shape: tuple[int, ...]) -> Piece:
    elements = sum(at * step for at, step in zip(start, piece.stride, strict=True))
    return replace(
        piece,
        start=piece.start + elements * DTYPES[dtype].bits // 8,
        shape=shape,
        stride=contiguous(shape),
        origin=(),
        # What is read first has it checked before anything that comes later is handed out.
        landmark=None if elements else piece.landmark,
    )


def _box(start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(first, first + count) for first, count in zip(start, shape, strict=True))


def boxes(shape: tuple[int, ...], most: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield where boxes of so many elements begin, and their shapes; each is one stretch of elements.

    Example:
        >>> list(boxes((2, 5, 3), 9))
        [((0, 0, 0), (1, 3, 3)), ((0, 3, 0), (1, 2, 3)), ((1, 0, 0), (1, 3, 3)), ((1, 3, 0), (1, 2, 3))]
        >>> list(boxes((), 9))
        [((), ())]
    """
    dim = 0
    while dim < len(shape) and math.prod(shape[dim + 1 :]) > most:
        dim += 1
    if dim == len(shape):
        yield (0,) * dim, shape
        return
    rows = max(1, most // max(1, math.prod(shape[dim + 1 :])))
    for outer in itertools.product(*map(range, shape[:dim])):
        for first in range(0, shape[dim], rows):
            inner = shape[dim + 1 :]
            start = (*outer, first, *(0 for _ in inner))
            yield start, (*(1 for _ in outer), min(rows, shape[dim] - first), *inner)
