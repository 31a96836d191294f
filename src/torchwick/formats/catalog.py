"""Where each tensor's bytes are: the one thing a format has to say.

A tensor is one or more *pieces*: boxes of its elements, each of which lies in one object. Almost every tensor
is one piece; those that many ranks saved together are several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torchwick.formats.dtypes import DTYPES

__all__ = ["Catalog", "Landmark", "Packed", "Piece", "TensorEntry", "contiguous", "span"]


@dataclass(frozen=True)
class Landmark:
    """Bytes that must be found beside a piece for it to be where it was derived to be.

    Attributes:
        start: their offset in the object.
        stop: one past the last of them.
        holds: whether the bytes that are really there are those that belong there.
    """

    start: int
    stop: int
    holds: Callable[[memoryview], bool] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Piece:
    """A box of a tensor's elements, and where they lie, at fixed steps, in an object.

    Attributes:
        object: the object's name in its catalog; empty where there is but one.
        start: offset of the first byte of element [0, 0, …] of the box.
        shape: lengths of the box.
        stride: elements from one to the next, for each dimension.
        storage: offset of the first byte of the storage that it is a view of. Pieces of one storage may
            overlap, and are aligned as far as this is.
        origin: index in the tensor of the box's first element; empty: [0, 0, …].
        landmark: what has to be checked before the bytes are believed, or None.
    """

    object: str
    start: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: int
    origin: tuple[int, ...] = ()
    landmark: Landmark | None = None


@dataclass(frozen=True)
class Packed:
    """A box of a tensor's elements that lies in an object as a file of torch.save's in itself.

    Attributes:
        object: the object's name in its catalog.
        start: offset of the first byte of that file.
        stop: one past its last.
        shape: lengths of the box.
        origin: index in the tensor of the box's first element.
    """

    object: str
    start: int
    stop: int
    shape: tuple[int, ...]
    origin: tuple[int, ...]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor, and where it is.

    Attributes:
        dtype: as safetensors spells it: ``"BF16"``, ``"F8_E4M3"``; see `torchwick.formats.dtypes`.
        shape: lengths of the dimensions.
        pieces: boxes that do not overlap, and together are the tensor.
        lazy: ``"conj"`` or ``"neg"`` for what torch has still to do to each element when it is looked at.
        byteorder: of the elements.
    """

    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...] | tuple[Packed, ...]
    lazy: tuple[str, ...] = ()
    byteorder: Literal["little", "big"] = "little"

    @property
    def numel(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self.numel * DTYPES[self.dtype].bits // 8


@dataclass(frozen=True)
class Catalog:
    """All tensors of a checkpoint by name, and what else is known of it.

    Attributes:
        format: ``"safetensors"``, ``"torch zip"``, ``"torch legacy"``, ``"TorchScript"`` or ``"dcp"``.
        entries: the tensors, in the order in which the checkpoint names them.
        metadata: what was written with them.
        others: what is there besides tensors, by name, as a short text: ``{"epoch": "3"}``.
    """

    format: str
    entries: dict[str, TensorEntry]
    metadata: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of a tensor whose elements lie one behind the other, the last dimension innermost.

    Example:
        >>> contiguous((2, 3, 4))
        (12, 4, 1)
    """
    strides, step = list[int](), 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Return how many elements lie from the first element of a box to its last, both included.

    Example:
        >>> span((2, 3), (10, 1)), span((0, 3), (10, 1)), span((), ())
        (13, 0, 1)
    """
    if 0 in shape:
        return 0
    return 1 + sum((length - 1) * step for length, step in zip(shape, stride, strict=True))
