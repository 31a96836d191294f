"""Reads parts of stored tensors into targets: in one transfer, and a second one for what was a surprise."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.buffers import writable_bytes
from torchwick.checkpoint.layout import groups
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.streaming import Stream
from torchwick.distributed.cutting import cut
from torchwick.distributed.packed import Ends, Item, guess, guessed, look
from torchwick.errors import FormatError
from torchwick.formats.catalog import Catalog, Piece, TensorEntry, contiguous, span
from torchwick.formats.dtypes import DTYPES
from torchwick.loading.feeding import allocator, bytes_of, copy
from torchwick.loading.ring import Ring
from torchwick.transfer import RangeCache

__all__ = ["Part", "Wanted", "fetch"]

_FRAGMENT = 16 << 20  # bytes that are read to be copied: a part of a transfer, as large as they come
_AHEAD = 512 << 20  # bytes held at most where no limit was given, beside the targets
_SMALL = 256 << 10
"""Bytes of an item that is read whole, to be taken apart when it is there: gaps between its parts would be
read rather than asked around anyway."""
_LOOK = 4 << 10  # bytes of a look at one end of an item


@dataclass(frozen=True)
class Part:
    """A part of a stored tensor, and where its elements belong.

    Attributes:
        start: the first element, in each dimension.
        target: a tensor of the part's shape.
    """

    start: tuple[int, ...]
    target: torch.Tensor

    @property
    def where(self) -> tuple[slice, ...]:
        """The index that takes the part out of the stored tensor."""
        return tuple(slice(at, at + n) for at, n in zip(self.start, self.target.shape, strict=True))


@dataclass(frozen=True)
class Wanted:
    """What is wanted of one stored tensor.

    Attributes:
        stored: an item that holds the tensor, or the tensor, in one piece, where its place is known.
        parts: the parts.
    """

    stored: Item | TensorEntry
    parts: Sequence[Part]

    @classmethod
    def all_bytes(cls, item: Item, target: torch.Tensor) -> Wanted:
        """Want an item as it is, in a tensor of as many bytes."""
        return cls(_as_bytes(item.file, item.start, item.stop), [Part((0,), target)])


def fetch(wanted: Iterable[Wanted], objects: Objects) -> None:
    """Read parts of tensors into their targets.

    Args:
        wanted: the parts.
        objects: the files that they are in.

    Raises:
        StoreError: something cannot be read. The targets are then in no defined state.
        FormatError: something else is where a tensor should be.
    """
    first, later = _Round(objects), list[Wanted]()
    for want in wanted:
        if not first.add(want):
            later.append(want)
    later += first.run()
    second = _Round(objects)
    for want in later:
        second.add_known(_entry_of(want.stored, objects), want.parts)
    second.run()


class _Round:
    """One transfer: what it is to read, and what is done with each as soon as it is there.

    Args:
        objects: the files.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._entries: dict[str, TensorEntry] = {}
        self._into: dict[str, torch.Tensor] = {}
        self._arrived: dict[str, Callable[[torch.Tensor], object]] = {}
        self._ends: list[tuple[Wanted, Piece, list[bytes]]] = []
        self._surprises: list[Wanted] = []
        self._devices: dict[torch.device, torch.Tensor] = {}
        self._most = min(_FRAGMENT, objects.config.memory_bytes() // 4)

    def add(self, want: Wanted) -> bool:
        """Want parts; return False where nobody knows beforehand where the elements are."""
        if isinstance(want.stored, TensorEntry):
            self.add_known(want.stored, want.parts)
            return True
        item = want.stored
        if len(item) <= min(_SMALL, self._most):
            self._add(
                _as_bytes(item.file, item.start, item.stop), lambda whole: self._take_apart(want, whole)
            )
            return True
        nbytes = math.prod(item.shape) * DTYPES[item.dtype].bits // 8
        before = guess(item, nbytes)
        if before is None:
            return False
        piece, ends = guessed(item, before), list[bytes]()
        for start, stop in ((item.start, piece.start), (piece.start + nbytes, item.stop)):
            self._add(_as_bytes(item.file, start, stop), lambda end: ends.append(bytes(writable_bytes(end))))
        self._ends.append((want, piece, ends))
        self.add_known(TensorEntry(item.dtype, item.shape, (piece,)), want.parts)
        return True

    def add_known(self, entry: TensorEntry, parts: Iterable[Part]) -> None:
        """Want parts of a tensor whose place is known, or believed to be."""
        (piece,) = entry.pieces
        assert isinstance(piece, Piece)  # noqa: S101 - for mypy: the others are taken apart before
        width = DTYPES[entry.dtype].bits // 8
        for part in parts:
            target = part.target
            plain = _lies_as_stored(entry, target, self._objects.uri)
            shape, stride = tuple(target.shape), tuple(target.stride()) if plain else None
            for box in cut(shape, piece.stride, stride, width, self._most):
                at = (first + more for first, more in zip(part.start, box.start, strict=True))
                start = piece.start + width * sum(n * step for n, step in zip(at, piece.stride, strict=True))
                one = replace(piece, start=start, shape=box.shape, origin=())
                self._add_box(
                    replace(entry, shape=box.shape, pieces=(one,)), target[box.where], dense=box.dense
                )

    def _add_box(self, entry: TensorEntry, target: torch.Tensor, *, dense: bool) -> None:
        key = self._add(entry, lambda tensor: copy(target, tensor))
        self._devices[target.device] = target
        if dense:
            self._into[key] = bytes_of(target)

    def _add(self, entry: TensorEntry, arrived: Callable[[torch.Tensor], object]) -> str:
        key = str(len(self._entries))
        self._entries[key] = entry
        self._arrived[key] = arrived
        return key

    def run(self) -> list[Wanted]:
        """Read it all, and return what turned out to be elsewhere than it was believed to be."""
        if not self._entries:
            return []
        asked = groups(self._entries, self._objects.names)
        alone = {group.names[0] for group in asked if group.is_alone}
        into = {key: memory for key, memory in self._into.items() if key in alone}
        catalog = Catalog("dcp", self._entries)
        memory = Ring(_AHEAD, allocator(self._devices.values()))
        stream = Stream(asked, catalog, self._objects, into, memory=memory, ahead=_AHEAD)
        with stream, torch.no_grad():
            for key, tensor in stream:
                if key not in into:
                    self._arrived[key](tensor)
        for want, piece, ends in self._ends:
            self._check(want, piece, ends)
        return self._surprises

    def _check(self, want: Wanted, piece: Piece, ends: list[bytes]) -> None:
        """Hold a guess against what was read around the elements."""
        assert isinstance(want.stored, Item)  # noqa: S101 - for mypy
        head, tail = (memoryview(end) for end in ends)
        uri = self._objects[piece.object].info.uri
        try:
            found, entry = look(want.stored, Ends(want.stored, head, tail).read, uri)
        except FormatError:  # the guess may be to blame: what was read may not be the ends
            self._surprises.append(want)
            return
        if found != piece or entry.dtype != want.stored.dtype or not _plain(entry):
            self._surprises.append(replace(want, stored=replace(entry, pieces=(found,))))

    def _take_apart(self, want: Wanted, whole: torch.Tensor) -> None:
        """Copy parts out of an item that is there."""
        item = want.stored
        assert isinstance(item, Item)  # noqa: S101 - for mypy
        file, uri = writable_bytes(whole), self._objects[item.file].info.uri
        piece, entry = look(item, lambda start, stop: file[start:stop], uri)
        dtype = tensors.dtype_of(entry.dtype, uri)
        first = piece.start - item.start
        elements = whole[first : first + span(piece.shape, piece.stride) * dtype.itemsize]
        if elements.data_ptr() % dtype.itemsize or elements.storage_offset() % dtype.itemsize:
            elements = elements.clone()
        tensor = elements.view(dtype).as_strided(piece.shape, piece.stride)
        tensor = tensors.finish(tensor, entry.lazy, entry.byteorder)
        for part in want.parts:
            copy(part.target, tensor[part.where])


def _entry_of(stored: Item | TensorEntry, objects: Objects) -> TensorEntry:
    """Return where a tensor is, if need be after a look at the item that it is in."""
    if isinstance(stored, TensorEntry):
        return stored
    info, start = objects[stored.file].info, stored.start
    cache = RangeCache(objects.store, info.uri, objects.config, info=info, read_ahead=_LOOK)

    def read(first: int, stop: int) -> memoryview:
        return cache.read(start + first, start + stop)

    piece, entry = look(stored, read, info.uri)
    objects.spend(cache.tally)
    return replace(entry, pieces=(piece,))


def _as_bytes(file: str, start: int, stop: int) -> TensorEntry:
    shape = (stop - start,)
    return TensorEntry("U8", shape, (Piece(file, start, shape, contiguous(shape), start),))


def _plain(entry: TensorEntry) -> bool:
    return entry.byteorder == sys.byteorder and not entry.lazy


def _lies_as_stored(entry: TensorEntry, target: torch.Tensor, uri: object) -> bool:
    """Whether the target's memory is to have the very bytes that the object has."""
    return (
        _plain(entry)
        and target.device.type == "cpu"
        and target.dtype == tensors.dtype_of(entry.dtype, uri)
        and not (target.is_conj() or target.is_neg())
    )
