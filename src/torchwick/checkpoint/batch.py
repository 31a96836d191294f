"""Memory for groups of tensors: what is to be read into it, and the tensors once all of it is there."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.buffers import writable_bytes
from torchwick.checkpoint.layout import Group, Region
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.request import Request
from torchwick.formats.catalog import Catalog, Packed, Piece, TensorEntry
from torchwick.formats.torch_catalog import misplaced, unpack
from torchwick.transfer import Fill

__all__ = ["OWN", "Batch", "Memory"]

_SMALL = 1 << 20  # bytes


class Memory(Protocol):
    """Where the memory of a batch comes from, and goes when the tensors in it have been handed out."""

    def lend(self, nbytes: int, uri: object) -> torch.Tensor:
        """Return memory of so many bytes, for an object that messages name."""
        ...

    def give_back(self, memory: torch.Tensor) -> None:
        """Take memory back: the caller has asked for what comes next."""
        ...


class _Own:
    """Gives memory away for good: it goes with the tensors."""

    lend = staticmethod(tensors.allocate)

    def give_back(self, memory: torch.Tensor) -> None:
        """Leave it to those who have tensors in it."""


OWN = _Own()


class Batch:
    """Groups that are read together.

    Args:
        groups: what is read.
        catalog: where it is.
        objects: where that is.
        into: memory that is there already, by the name of the one tensor of a group.
        memory: lends it for the others.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        catalog: Catalog,
        objects: Objects,
        into: Mapping[str, torch.Tensor],
        memory: Memory = OWN,
    ) -> None:
        self._groups = groups
        self._catalog = catalog
        self._objects = objects
        self._into = into
        self._lender = memory
        self._memory = collections.deque(map(self._memory_of, groups))
        self.request = Request(objects)
        for region, lent in itertools.chain.from_iterable(map(dict.items, self._memory)):
            self.request.add(region.object, Fill(region.start, writable_bytes(lent)))
            self.request.expect(region.object, region.landmarks)

    def _memory_of(self, group: Group) -> dict[Region, torch.Tensor]:
        given = self._into.get(group.names[0])
        if given is not None:
            return dict.fromkeys(group.regions, given)
        return {region: self._lender.lend(len(region), self._objects.uri) for region in group.regions}

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Return the tensors, all bytes being there, group by group; their memory goes with them.

        Raises:
            FormatError: the bytes around them are not those that belong there.
        """
        self.request.check()
        for group in self._groups:
            memory = self._memory.popleft()
            for name in group.names:
                yield name, self._tensor(self._catalog.entries[name], memory)
            if group.names[0] not in self._into:
                for lent in memory.values():
                    self._lender.give_back(lent)

    def _tensor(self, entry: TensorEntry, memory: dict[Region, torch.Tensor]) -> torch.Tensor:
        uri = self._objects.uri
        if not entry.nbytes:
            return tensors.empty(entry.dtype, entry.shape, uri)
        if len(entry.pieces) == 1:
            return self._box(entry, entry.pieces[0], memory)
        tensor = tensors.empty(entry.dtype, entry.shape, uri)
        for piece in entry.pieces:
            where = tuple(slice(a, a + n) for a, n in zip(piece.origin, piece.shape, strict=True))
            tensor[where] = self._box(entry, piece, memory)
        return tensor

    def _box(
        self, entry: TensorEntry, piece: Piece | Packed, memory: dict[Region, torch.Tensor]
    ) -> torch.Tensor:
        if isinstance(piece, Packed):
            return self._unpacked(entry, piece, memory[Region(piece.object, piece.start, piece.stop)])
        region = next(iter(memory))
        at, place = piece.start - region.start, (piece.shape, piece.stride)
        tensor = tensors.view(memory[region], at, entry.dtype, place, self._objects.uri)
        return tensors.finish(tensor, entry.lazy, entry.byteorder)

    def _unpacked(self, entry: TensorEntry, packed: Packed, memory: torch.Tensor) -> torch.Tensor:
        uri = self._objects[packed.object].info.uri
        file = writable_bytes(memory)
        piece, inner = unpack(lambda start, stop: file[start:stop], len(file), packed, entry.dtype, uri)
        landmark = piece.landmark
        if landmark is not None and not landmark.holds(file[landmark.start : landmark.stop]):
            raise misplaced(uri)
        width = tensors.dtype_of(entry.dtype, uri).itemsize
        if piece.start % width:
            memory, piece = memory[piece.start :].clone(), replace(piece, start=0)
        tensor = tensors.view(memory, piece.start, entry.dtype, (piece.shape, piece.stride), uri)
        tensor = tensors.finish(tensor, inner.lazy, inner.byteorder)
        # A small one is freed of the file around it, which may be larger.
        return tensor.clone() if len(file) < _SMALL else tensor
