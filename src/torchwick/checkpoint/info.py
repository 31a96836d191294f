"""`TensorInfo`: what is known of a tensor before it is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torchwick.checkpoint.layout import byte_span
from torchwick.formats.catalog import Packed, TensorEntry

__all__ = ["ObjectFact", "TensorInfo", "describe"]


@dataclass(frozen=True)
class ObjectFact:
    """What is known of an object that tensors of a checkpoint are in.

    Attributes:
        uri: where it is, as text without secrets.
        size: its bytes; None where the server does not say.
    """

    uri: str
    size: int | None


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without reading it.

    Attributes:
        dtype: as safetensors spells it: ``"BF16"``, ``"F8_E4M3"``; ``"C128"`` where safetensors has none.
        shape: lengths of the dimensions.
        nbytes: bytes of its elements.
        places: every place where elements of it are, as the URI of an object, the offset of the first byte
            and one past the last: one for almost every tensor, several where many ranks saved it together.

    Example:
        >>> TensorInfo("BF16", (2, 3), 12, (("s3://models/new.safetensors", 88, 100),)).numel
        6
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    places: tuple[tuple[str, int, int], ...]

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)


def describe(entry: TensorEntry, uri_of: Callable[[str], str]) -> TensorInfo:
    """Return an entry as callers see it; `uri_of` tells the URI of an object by its name."""
    places = []
    for piece in entry.pieces:
        span = (piece.start, piece.stop) if isinstance(piece, Packed) else byte_span(piece, entry.dtype)
        places.append((uri_of(piece.object), *span))
    return TensorInfo(entry.dtype, entry.shape, entry.nbytes, tuple(places))
