"""Counts NaN and Inf in the tensors of a checkpoint, as far as it can while their bytes pass by."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from torchwick.checkpoint import Checkpoint
from torchwick.checkpoint.layout import byte_span
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.tensors import dtype_of
from torchwick.formats.catalog import Catalog, Piece, TensorEntry, contiguous
from torchwick.formats.dtypes import DTYPES
from torchwick.inspection.diff_steps import read_step, steps
from torchwick.inspection.verify_drain import memory_limit
from torchwick.inspection.verify_looks import Torn, overlapping

__all__ = ["Finite", "count"]

_PARTS_OF = {"C32": "F16", "C64": "F32", "C128": "F64"}
_AT_ONCE = 32_000
"""Elements looked at in one go: few enough for the processor's cache, and for torch to start no threads of
its own (at::internal::GRAIN_SIZE), of which each of the threads that read would otherwise have a set."""
_MOST_SHARE = 4  # a step of what is read a second time takes this part of the memory

Counts = tuple[int, int, int]
"""NaN, positive and negative infinity."""


@dataclass
class _Stretch:
    """Elements that lie one behind the other, whichever tensors they are.

    Attributes:
        start: offset in the object of the first byte.
        stop: one past the last.
        dtype: of the elements; of the parts of complex ones.
        swapped: whether their bytes are in the other order than this machine's.
        names: the tensors.
        counts: what was found so far.
    """

    start: int
    stop: int
    dtype: torch.dtype
    swapped: bool
    names: tuple[str, ...]
    counts: list[int] = field(default_factory=lambda: [0, 0, 0])


class Finite:
    """Has looks at a checkpoint's objects, and adds up what they find.

    Args:
        catalog: where the tensors are.
        objects: where that is.
    """

    def __init__(self, catalog: Catalog, objects: Objects) -> None:
        self._catalog = catalog
        self._objects = objects
        floating = {
            name: entry
            for name, entry in catalog.entries.items()
            if entry.numel and _kind(entry.dtype, objects.uri) is not None
        }
        self._in_passing, self._rest = _sorted_out(floating)
        self._looks: dict[str, _FiniteLook] = {}

    def look(self, object_name: str) -> _FiniteLook:
        """Return a new look at an object, which counts from nothing."""
        groups = self._in_passing.get(object_name, [])
        look = _FiniteLook([self._stretch(names, start, stop) for names, start, stop in groups])
        self._looks[object_name] = look
        return look

    def _stretch(self, names: tuple[str, ...], start: int, stop: int) -> _Stretch:
        entry = self._catalog.entries[names[0]]
        dtype = _kind(entry.dtype, self._objects.uri)
        assert dtype is not None  # noqa: S101 - for mypy: others were left out
        return _Stretch(start, stop, dtype, entry.byteorder != sys.byteorder, names)

    def counts(self) -> dict[str, Sequence[int]]:
        """Return NaN and infinities by tensor, all bytes having passed; what did not count then is read now.

        Raises:
            StoreError: it cannot be read.
        """
        found: dict[str, Sequence[int]] = {}
        for look in self._looks.values():
            for stretch in look.stretches:
                found |= dict.fromkeys(stretch.names, stretch.counts)
        with Checkpoint(self._catalog, self._objects) as checkpoint:
            wanted = [(name, (checkpoint.info(name),)) for name in self._rest]
            for step in steps(wanted, memory_limit(self._objects) // _MOST_SHARE):
                for name, tensor in read_step(checkpoint, step).items():
                    before = found.get(name, (0, 0, 0))
                    found[name] = [a + b for a, b in zip(before, count(tensor), strict=True)]
        return found


def _kind(dtype: str, uri: object) -> torch.dtype | None:
    """Return the dtype whose elements may be NaN or Inf, or None if none of these can."""
    part = _PARTS_OF.get(dtype, dtype)
    if part[0] not in "FB" or part == "BOOL" or DTYPES[part].bits < 8:
        return None
    return dtype_of(part, uri)


def _sorted_out(
    entries: Mapping[str, TensorEntry],
) -> tuple[dict[str, list[tuple[tuple[str, ...], int, int]]], list[str]]:
    """Return the stretches of each object that can be looked at in passing, and the tensors that cannot.

    Stretches are (names, start, stop), in order and apart from each other; the names of one are tied.
    """
    places: dict[tuple[str, int, int, str, str], list[str]] = {}
    rest: list[str] = []
    for name, entry in entries.items():
        piece = entry.pieces[0]
        if len(entry.pieces) > 1 or not isinstance(piece, Piece) or entry.lazy or not _is_dense(piece):
            rest.append(name)
        else:
            place = (piece.object, *byte_span(piece, entry.dtype), entry.dtype, entry.byteorder)
            places.setdefault(place, []).append(name)
    found: dict[str, list[tuple[tuple[str, ...], int, int]]] = {}
    for (object_name, start, stop, *_), names in sorted(places.items()):
        before = found.setdefault(object_name, [])
        if before and start < before[-1][2]:  # views that overlap, and are not the same
            rest += names
        else:
            before.append((tuple(names), start, stop))
    return found, rest


def _is_dense(piece: Piece) -> bool:
    return all(
        length == 1 or step == usual
        for length, step, usual in zip(piece.shape, piece.stride, contiguous(piece.shape), strict=True)
    )


class _FiniteLook:
    """Counts in one object; see `torchwick.inspection.verify_looks.Look`."""

    def __init__(self, stretches: list[_Stretch]) -> None:
        self.stretches = stretches
        self._ranges = [(stretch.start, stretch.stop) for stretch in stretches]
        self._torn = Torn()
        self._counting = threading.Lock()

    def see(self, start: int, data: memoryview) -> None:
        """Count in a stretch of the object."""
        for which in overlapping(self._ranges, start, start + len(data)):
            stretch = self.stretches[which]
            first, stop = max(start, stretch.start), min(start + len(data), stretch.stop)
            for at, end in _elements(first, stop, stretch):
                whole = self._torn.add(*_around(at, end, stretch), at, data[at - start : end - start])
                if whole is not None:
                    self._add(stretch, count(_tensor(whole, stretch)))

    def _add(self, stretch: _Stretch, counts: Counts) -> None:
        with self._counting:
            stretch.counts[:] = [a + b for a, b in zip(stretch.counts, counts, strict=True)]


def _elements(first: int, stop: int, stretch: _Stretch) -> Iterator[tuple[int, int]]:
    """Cut a range in three: the end of an element, whole ones, and the beginning of one; those there are."""
    width = stretch.dtype.itemsize
    whole_from = min(stop, first + (stretch.start - first) % width)
    whole_to = max(whole_from, stop - (stop - stretch.start) % width)
    for at, end in ((first, whole_from), (whole_from, whole_to), (whole_to, stop)):
        if at < end:
            yield at, end


def _around(at: int, end: int, stretch: _Stretch) -> tuple[int, int]:
    """Return the range of whole elements that a range has bytes of."""
    width = stretch.dtype.itemsize
    return at - (at - stretch.start) % width, end + (stretch.start - end) % width


def _tensor(data: memoryview, stretch: _Stretch) -> torch.Tensor:
    width = stretch.dtype.itemsize
    octets = torch.frombuffer(data, dtype=torch.uint8)
    if stretch.swapped:
        octets = octets.view(-1, width).flip(1).view(-1)
    if octets.data_ptr() % width:
        octets = octets.clone()
    return octets.view(stretch.dtype)


def count(tensor: torch.Tensor) -> Counts:
    """Return how many elements are NaN, positive and negative infinity; of complex ones, of both parts.

    Example:
        >>> count(torch.tensor([1.0, float("nan"), -float("inf")]))
        (1, 0, 1)
    """
    tensor = tensor.resolve_conj().resolve_neg()
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
    totals = [0, 0, 0]
    for at in range(0, flat.numel(), _AT_ONCE):
        some = flat[at : at + _AT_ONCE]
        if some.dtype.itemsize == 1:  # one of the float8s, of which torch compares none
            some = some.to(torch.float32)
        least, most = (extreme.item() for extreme in torch.aminmax(some))
        if math.isfinite(least) and math.isfinite(most):
            continue
        found = (some.isnan(), some == math.inf, some == -math.inf)
        totals = [total + int(mask.sum()) for total, mask in zip(totals, found, strict=True)]
    return totals[0], totals[1], totals[2]
