"""Which bytes have to be read for which tensors: pure functions from catalog entries to regions of memory.

Tensors that share bytes of a storage share memory again, as they did when they were saved: they are views of
one region, which is read once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchwick.formats.catalog import Landmark, Packed, Piece, TensorEntry, span
from torchwick.formats.dtypes import DTYPES

__all__ = ["Group", "Region", "batches", "bridges", "byte_span", "groups"]

_ALIGNMENT = 16  # bytes: the widest element torch has, complex128


@dataclass(frozen=True)
class Region:
    """A half-open range of an object, read into memory of its own, and what is to be found around it."""

    object: str
    start: int
    stop: int
    landmarks: tuple[Landmark, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Group:
    """Tensors that become complete together, and the regions they are made of."""

    names: tuple[str, ...]
    regions: tuple[Region, ...]
    assembled: int = 0
    """Bytes of memory besides, for a tensor that is put together from several regions."""

    @property
    def is_alone(self) -> bool:
        """Whether it is one tensor, of one region."""
        return len(self.names) == len(self.regions) == 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it takes."""
        return sum(map(len, self.regions)) + self.assembled


def byte_span(piece: Piece, dtype: str) -> tuple[int, int]:
    """Return the half-open range of an object from a piece's first byte to its last.

    Example:
        >>> byte_span(Piece("", 100, (2, 3), (10, 1), storage=60), "F32")
        (100, 152)
    """
    return piece.start, piece.start + span(piece.shape, piece.stride) * DTYPES[dtype].bits // 8


def groups(entries: Mapping[str, TensorEntry], order: Sequence[str]) -> list[Group]:
    """Return what has to be read for tensors, in the order of the objects and their bytes.

    Args:
        entries: the tensors, by name.
        order: the names of the objects.
    """
    rank = {name: at for at, name in enumerate(order)}
    alone = [group for name, entry in entries.items() if (group := _of_packed(name, entry))]
    together = [*_of_pieces(entries), *alone]
    empty = [Group((name,), ()) for name, entry in entries.items() if not entry.nbytes]
    return empty + sorted(together, key=lambda group: (rank[group.regions[0].object], group.regions[0].start))


def _of_packed(name: str, entry: TensorEntry) -> Group | None:
    regions = tuple(
        Region(piece.object, piece.start, piece.stop) for piece in entry.pieces if isinstance(piece, Packed)
    )
    return (
        Group((name,), regions, entry.nbytes if len(regions) > 1 else 0) if regions and entry.nbytes else None
    )


def _of_pieces(entries: Mapping[str, TensorEntry]) -> Iterator[Group]:
    """Join tensors whose bytes overlap."""
    places = [
        (piece.object, *byte_span(piece, entry.dtype), name, piece)
        for name, entry in entries.items()
        for piece in entry.pieces
        if isinstance(piece, Piece) and entry.nbytes
    ]
    places.sort(key=lambda place: place[:3])
    run: list[tuple[str, int, int, str, Piece]] = []
    stop = 0
    for place in places:
        if run and (place[0] != run[0][0] or place[1] >= stop):
            yield _joined(run)
            run = []
        stop = max(stop, place[2]) if run else place[2]
        run.append(place)
    if run:
        yield _joined(run)


def _joined(run: list[tuple[str, int, int, str, Piece]]) -> Group:
    object_, start, _, _, first = run[0]
    if len(run) > 1:  # elements of any size begin at multiples of it from the storage on
        start -= (start - first.storage) % _ALIGNMENT
    landmarks = {piece.landmark.start: piece.landmark for *_, piece in run if piece.landmark}
    region = Region(object_, start, max(place[2] for place in run), tuple(landmarks.values()))
    return Group(tuple(place[3] for place in run), (region,))


def batches(of: Iterable[Group], size: int) -> Iterator[list[Group]]:
    """Put neighbouring small groups together, so that one request reads many of them.

    Example:
        >>> small, large = Group(("s",), (Region("", 0, 4),)), Group(("l",), (Region("", 4, 99),))
        >>> [len(batch) for batch in batches([small, small, large, small], 10)]
        [2, 1, 1]
    """
    batch, held = list[Group](), 0
    for group in of:
        if batch and held + group.nbytes > size:
            yield batch
            batch, held = [], 0
        batch.append(group)
        held += group.nbytes
    if batch:
        yield batch


def bridges(ranges: Sequence[tuple[int, int]], longest: int) -> list[tuple[int, int]]:
    """Return the gaps between ranges that cost less to read than another request.

    Args:
        ranges: half-open, in order, apart from each other.
        longest: bytes of the longest gap that is read.

    Example:
        >>> bridges([(0, 10), (14, 20), (90, 99)], longest=8)
        [(10, 14)]
    """
    pairs = itertools.pairwise(ranges)
    return [(stop, start) for (_, stop), (start, _) in pairs if 0 < start - stop <= longest]
