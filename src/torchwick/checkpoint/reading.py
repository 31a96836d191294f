"""Reads tensors, and parts of tensors, into memory of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.batch import Batch
from torchwick.checkpoint.buffers import writable_bytes
from torchwick.checkpoint.layout import groups
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.request import Request
from torchwick.checkpoint.slices import Box, Index, cut, parse_index, runs
from torchwick.checkpoint.streaming import Stream
from torchwick.formats.catalog import Catalog, Packed, Piece, TensorEntry
from torchwick.formats.dtypes import DTYPES
from torchwick.formats.torch_catalog import misplaced, unpack
from torchwick.transfer import Fill

__all__ = ["Reader"]

_LARGEST_GAP = 256 << 10
"""Bytes between two rows that are rather read than asked around: 3 ms of a connection at S3's 85 MB/s."""
_MOST_SCRATCH = 64 << 20  # bytes read at once of which most are thrown away


class Reader:
    """Reads what a catalog describes.

    Args:
        catalog: where the tensors are.
        objects: where that is.
    """

    def __init__(self, catalog: Catalog, objects: Objects) -> None:
        self._catalog = catalog
        self._objects = objects
        self._unpacked: dict[Packed, tuple[Piece, TensorEntry]] = {}

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return tensors by name, in the order of the names.

        Raises:
            StoreError: they cannot be read.
            FormatError: the bytes around them are not those that belong there.
        """
        entries = {name: self._catalog.entries[name] for name in names}
        wanted = groups(entries, self._objects.names)
        batch = Batch(wanted, self._catalog, self._objects, {})
        self._transfer(batch.request, sum(group.nbytes for group in wanted))
        found = dict(batch.tensors())
        return {name: found[name] for name in entries}

    def stream(self, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Return an iterator that yields tensors in the order of their bytes, while the next are being read.

        Raises:
            MemoryLimitError: one alone is larger than the memory limit.
            StoreError: they cannot be read.
        """
        entries = {name: self._catalog.entries[name] for name in names}
        return _run(Stream(groups(entries, self._objects.names), self._catalog, self._objects))

    def _transfer(self, request: Request, total: int) -> None:
        self._objects.transfer([*request.parts(self._objects.part_size(total))])

    def read_part(self, name: str, index: Index) -> torch.Tensor:
        """Return ``tensor[index]``, of which only the bytes it needs are read, or little more.

        Raises:
            IndexError: see `torchwick.checkpoint.slices.parse_index`; so too `TypeError` and `ValueError`.
            StoreError: they cannot be read.
        """
        entry = self._catalog.entries[name]
        box, shown = parse_index(index, entry.shape)
        if DTYPES[entry.dtype].bits < 8:
            return self.read([name])[name][index]
        if 0 in box.shape:
            return tensors.empty(entry.dtype, shown, self._objects.uri)
        return self._part(entry, box).reshape(shown)

    def _part(self, entry: TensorEntry, box: Box) -> torch.Tensor:
        if len(entry.pieces) == 1:
            return self._of_piece(entry, entry.pieces[0], box)
        part = tensors.empty(entry.dtype, box.shape, self._objects.uri)
        for piece in entry.pieces:
            within = _within(box, piece)
            if within is not None:
                where, inner = within
                part[where] = self._of_piece(entry, piece, inner)
        return part

    def _of_piece(self, entry: TensorEntry, piece: Piece | Packed, box: Box) -> torch.Tensor:
        plain, inner = self._unpack(entry, piece)
        return tensors.finish(self._strided(entry.dtype, plain, box), inner.lazy, inner.byteorder)

    def _unpack(self, entry: TensorEntry, piece: Piece | Packed) -> tuple[Piece, TensorEntry]:
        """Find the elements in a file of torch.save's, which takes a request or two once."""
        if isinstance(piece, Piece):
            return piece, entry
        if piece not in self._unpacked:
            self._unpacked[piece] = self._look(entry, piece)
        return self._unpacked[piece]

    def _look(self, entry: TensorEntry, packed: Packed) -> tuple[Piece, TensorEntry]:
        start, size = packed.start, packed.stop - packed.start
        with self._objects.looking(packed.object) as cache:

            def read(first: int, stop: int) -> memoryview:
                return cache.read(start + first, start + stop)

            found, inner = unpack(read, size, packed, entry.dtype, cache.info.uri)
            if found.landmark and not found.landmark.holds(read(found.landmark.start, found.landmark.stop)):
                raise misplaced(cache.info.uri)
        at, storage = start + found.start, start + found.storage
        piece = replace(found, object=packed.object, start=at, storage=storage, landmark=None)
        return piece, inner

    def _strided(self, dtype: str, piece: Piece, box: Box) -> torch.Tensor:
        """Read a part that lies at fixed steps; piecewise where much more than it would have to be held."""
        stride = tuple(step * length for step, length in zip(box.step, piece.stride, strict=True))
        width = DTYPES[dtype].bits // 8
        stretches = runs(box.shape, stride, _LARGEST_GAP // width)
        numel = math.prod(box.shape)
        if stretches.numel * width > _MOST_SCRATCH and stretches.numel > 2 * numel and numel > 1:
            return self._halved(dtype, piece, box, stride)
        first = sum(at * step for at, step in zip(box.start, piece.stride, strict=True))
        memory = tensors.allocate(stretches.numel * width, self._objects.uri)
        buffer, length = writable_bytes(memory), stretches.length * width
        request = Request(self._objects)
        request.expect(piece.object, [piece.landmark] if piece.landmark else [])
        for at, offset in enumerate(stretches.offsets):
            fill = Fill(piece.start + (first + offset) * width, buffer[at * length : (at + 1) * length])
            request.add(piece.object, fill)
        self._transfer(request, len(buffer))
        request.check()
        part = tensors.view(memory, 0, dtype, (box.shape, stretches.stride), self._objects.uri)
        if stretches.numel == numel:
            dense = part.contiguous()
        else:  # leave what lies between behind
            dense = tensors.empty(dtype, box.shape, self._objects.uri).copy_(part)
        return dense.view(-1).view(box.shape)  # with the usual strides even where they do not matter

    def _halved(self, dtype: str, piece: Piece, box: Box, stride: tuple[int, ...]) -> torch.Tensor:
        part = tensors.empty(dtype, box.shape, self._objects.uri)
        dim = max((d for d in range(len(stride)) if box.shape[d] > 1), key=lambda d: stride[d])
        at = 0
        for half in cut(box, dim):
            part.narrow(dim, at, half.shape[dim]).copy_(self._strided(dtype, piece, half))
            at += half.shape[dim]
        return part


def _run(stream: Stream) -> Iterator[tuple[str, torch.Tensor]]:
    with stream:
        yield from stream


def _within(box: Box, piece: Piece | Packed) -> tuple[tuple[slice, ...], Box] | None:
    """Return which of a part's elements are in a piece, and where there; None if none are."""
    where, starts, shape = list[slice](), list[int](), list[int]()
    for start, count, step, origin, length in zip(
        box.start, box.shape, box.step, piece.origin, piece.shape, strict=True
    ):
        first = max(0, -((start - origin) // step))
        last = min(count, -((start - origin - length) // step))
        if first >= last:
            return None
        where.append(slice(first, last))
        starts.append(start + first * step - origin)
        shape.append(last - first)
    return tuple(where), Box(tuple(starts), tuple(shape), box.step)
