"""A box of a tensor as a tensor of its own: the same pieces, as far as they lie in it."""

from __future__ import annotations

from dataclasses import replace

from torchwick.formats.catalog import Piece, TensorEntry
from torchwick.formats.dtypes import DTYPES

__all__ = ["box_of"]


def box_of(entry: TensorEntry, start: tuple[int, ...], shape: tuple[int, ...]) -> TensorEntry | None:
    """Return the entry for a box of a tensor; None where its elements cannot be told apart in their bytes.

    Args:
        entry: the tensor.
        start: where the box begins.
        shape: its lengths.

    Example:
        >>> matrix = TensorEntry("F32", (4, 3), (Piece("", 100, (4, 3), (3, 1), 100),))
        >>> box_of(matrix, (1, 0), (2, 3)).pieces[0].start
        112
    """
    bits = DTYPES[entry.dtype].bits
    if bits < 8 or not all(isinstance(piece, Piece) for piece in entry.pieces):
        return None
    parts = [_part(piece, start, shape, bits // 8) for piece in entry.pieces if isinstance(piece, Piece)]
    return replace(entry, shape=shape, pieces=tuple(part for part in parts if part is not None))


def _part(piece: Piece, start: tuple[int, ...], shape: tuple[int, ...], width: int) -> Piece | None:
    """Return what of a piece lies in the box, placed in it."""
    origin = piece.origin or (0,) * len(piece.shape)
    firsts = [max(at, begin) for at, begin in zip(origin, start, strict=True)]
    stops = [
        min(at + length, begin + count)
        for at, length, begin, count in zip(origin, piece.shape, start, shape, strict=True)
    ]
    if any(first >= stop for first, stop in zip(firsts, stops, strict=True)):
        return None
    steps = zip(firsts, origin, piece.stride, strict=True)
    return replace(
        piece,
        start=piece.start + sum((first - at) * step for first, at, step in steps) * width,
        shape=tuple(stop - first for first, stop in zip(firsts, stops, strict=True)),
        origin=tuple(first - begin for first, begin in zip(firsts, start, strict=True)),
    )
