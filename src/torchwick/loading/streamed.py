"""Streams into storages what torch.load only laid out: onto another device, or as another dtype.

torch.load has made a storage on the CPU for each record, of which no page was touched. Each gives way to the
memory that its tensors are to have in the end, and the bytes are fed into that.
"""

from __future__ import annotations

import bisect
import ctypes
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from torchwick.checkpoint.watch import Watch
from torchwick.formats.catalog import Catalog, Landmark, Piece, TensorEntry
from torchwick.formats.dtypes import of_torch
from torchwick.loading.casting import as_dtype, by_storage, rest_on
from torchwick.loading.devices import on_host
from torchwick.loading.feeding import feed
from torchwick.loading.source import Source
from torchwick.loading.whole import Range
from torchwick.transfer import Fill

__all__ = ["Destinations", "Spans", "redirect", "stream"]


class Spans:
    """Finds the storage that memory belongs to.

    Args:
        storages: on the CPU.
    """

    def __init__(self, storages: Iterable[torch.UntypedStorage]) -> None:
        self._at = {storage.data_ptr(): storage for storage in storages if storage.nbytes()}
        self._ends = sorted((start, start + storage.nbytes()) for start, storage in self._at.items())

    def __getitem__(self, address: int) -> torch.UntypedStorage:
        return self._at[address]

    def find(self, buffer: memoryview) -> tuple[int, int] | None:
        """Return the address of the storage, and the offset in it; None if it lies in none."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        at = bisect.bisect_right(self._ends, (address, sys.maxsize)) - 1
        if at < 0 or address + len(buffer) > self._ends[at][1]:
            return None
        return self._ends[at][0], address - self._ends[at][0]

    def owner(self, buffer: memoryview) -> tuple[int, int]:
        """Return the same of memory that is known to lie in one."""
        found = self.find(buffer)
        if found is None:
            raise AssertionError("memory that no storage owns")
        return found


@dataclass(frozen=True)
class Destinations:
    """Where the bytes of storages go that torch.load only laid out, by the addresses of the storages.

    Attributes:
        cast: new memory, and the dtype of the elements that are cast into it.
        moved: storages elsewhere that get the bytes as they are. What is in neither is filled where it is.
    """

    cast: dict[int, tuple[torch.Tensor, torch.dtype]]
    moved: dict[int, torch.UntypedStorage]

    def memory(self, address: int) -> tuple[torch.dtype, torch.Tensor]:
        """Return what the elements of a storage go into, and the dtype they have when they come."""
        if address in self.cast:
            memory, stored = self.cast[address]
            return stored, memory
        return torch.uint8, as_dtype(self.moved[address], torch.uint8)


def redirect(value: Any, dtype: torch.dtype, devices: Mapping[int, torch.device]) -> Destinations:
    """Have the tensors of an object rest on the memory that they are to have, which is yet to be filled.

    Args:
        value: the object; its tensors rest on storages on the CPU.
        dtype: what the floating-point ones become.
        devices: where they are to be, by the addresses of their storages.
    """
    to = Destinations({}, {})
    for shared in by_storage(value)[0]:
        storage, stored = shared.storage, shared.tensors[0].dtype
        address = storage.data_ptr()
        device = devices[address]
        if shared.casts and stored != dtype and _name(stored):
            flat = torch.empty(storage.nbytes() // stored.itemsize, dtype=dtype, device=device)
            rest_on(flat, shared.tensors)
            if storage.nbytes():
                to.cast[address] = flat, stored
        elif not on_host(device):
            moved = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device)
            for tensor in shared.tensors:
                rest_on(as_dtype(moved.untyped_storage(), tensor.dtype), [tensor])
            if storage.nbytes():
                to.moved[address] = moved.untyped_storage()
    return to


def stream(
    source: Source, fills: Sequence[Fill], spans: Spans, to: Destinations, landmarks: Iterable[Landmark]
) -> None:
    """Feed ranges of an object to where they belong.

    Args:
        source: the object.
        fills: ranges, and the memory on the CPU that torch.load had them read into.
        spans: the storages which that memory belongs to.
        to: where they go instead.
        landmarks: what has to be found before ranges.

    Raises:
        MisplacedError: it is not there.
        StoreError: a range could not be read.
        IntegrityError: the bytes are not those that were stored.
    """
    waiting = {spans.owner(fill.buffer)[0] for fill in fills}
    for address in {*to.cast, *to.moved} - waiting:  # torch.load has its bytes already
        stored, target = to.memory(address)
        with torch.no_grad():
            target.copy_(as_dtype(spans[address], stored))
    before = {landmark.stop: landmark for landmark in landmarks}
    entries: dict[str, TensorEntry] = {}
    targets: dict[str, torch.Tensor] = {}
    for fill in fills:
        name = str(fill.start)
        stored, targets[name] = _target(fill, spans, to)
        count = (len(fill.buffer) // stored.itemsize,)
        piece = Piece("", fill.start, count, (1,), fill.start, landmark=before.get(fill.start))
        entries[name] = TensorEntry(_name(stored), count, (piece,))
    _feed(source, Catalog("torch zip", entries), targets)


def _name(dtype: torch.dtype) -> str:
    """Return safetensors' name of a dtype, empty if it has none."""
    known = of_torch(str(dtype).removeprefix("torch."))
    return known.name if known else ""


def _target(fill: Fill, spans: Spans, to: Destinations) -> tuple[torch.dtype, torch.Tensor]:
    address, offset = spans.owner(fill.buffer)
    if address not in to.cast and address not in to.moved:
        return torch.uint8, torch.frombuffer(fill.buffer, dtype=torch.uint8)
    stored, memory = to.memory(address)
    first = offset // stored.itemsize
    return stored, memory[first : first + len(fill.buffer) // stored.itemsize]


def _feed(source: Source, catalog: Catalog, targets: Mapping[str, torch.Tensor]) -> None:
    objects = source.objects()
    total = 0

    def watches(wanted: Mapping[str, Sequence[Range]]) -> dict[str, Watch]:
        nonlocal total
        watch = source.watch(wanted[""])
        total = sum(stop - start for start, stop in (*wanted[""], *watch.besides))
        return {"": watch}

    def tell(done: int, connections: int) -> None:
        source.tell(done, total, connections)

    try:
        feed(
            catalog,
            objects,
            targets,
            watches,
            lambda done, connections: source.tell(done, total, connections),
        )
    finally:
        source.spend(objects.spent)
    source.tell(total, total, 0)
