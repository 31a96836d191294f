"""Brings every rank's share to all: broadcasts of units, in one order, while the next ones are being read.

A piece of a tensor that is to lie in memory as it goes over the wire is read, sent and received right there.
What is cast, packed or on another device than the wire passes through a few buffers.
"""

from __future__ import annotations

import collections
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.layout import groups
from torchwick.checkpoint.objects import Objects
from torchwick.distributed.shares import Unit, in_rounds, split, unit_size, units
from torchwick.formats.catalog import Catalog
from torchwick.loading.feeding import bytes_of, copy, lies_as_stored
from torchwick.loading.fragments import Fragment, fragments
from torchwick.loading.ring import Ring
from torchwick.ranks.agreement import Agreement
from torchwick.ranks.members import Members, Work

__all__ = ["Exchange", "Plan"]

_UNDER_WAY = 4
"""Broadcasts at once: gloo runs two, and two that wait keep it busy while this thread copies."""
_SETTLED = 10.0  # seconds that the collectives of a load that failed may take to end


@dataclass(frozen=True)
class _Place:
    """Where a fragment goes on this rank.

    Attributes:
        target: the box of the tensor that it is read for.
        wire: the dtype that it has on the wire: the smaller one of that in the object and that of the target.
    """

    target: torch.Tensor
    wire: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes on the wire."""
        return self.target.numel() * self.wire.itemsize

    def direct(self, device: torch.device) -> torch.Tensor | None:
        """Return the memory of the target, if it is to hold the very bytes that are on the wire."""
        target = self.target
        if (target.device, target.dtype) != (device, self.wire) or not _is_plain(target):
            return None
        return bytes_of(target)

    def pack(self, tensor: torch.Tensor, memory: torch.Tensor) -> None:
        """Put what was read onto the wire; as bytes where nothing is cast: some dtypes know no copy."""
        if tensor.dtype == self.wire and _is_plain(tensor):
            copy(memory, bytes_of(tensor))
        else:
            copy(memory.view(self.wire).view(self.target.shape), tensor)

    def unpack(self, memory: torch.Tensor) -> None:
        """Take what came over the wire to where it is to be."""
        if self.target.dtype == self.wire and _is_plain(self.target):
            copy(bytes_of(self.target), memory)
        else:
            copy(self.target, memory.view(self.wire).view(self.target.shape))


class Plan:
    """What is read by whom, and in which order it is exchanged: the same on every rank.

    Args:
        catalog: what is read.
        objects: where that is.
        targets: tensors by the catalog's names, of the same shapes.
        ranks: how many there are.
    """

    def __init__(
        self, catalog: Catalog, objects: Objects, targets: Mapping[str, torch.Tensor], ranks: int
    ) -> None:
        self._objects = objects
        total = sum(group.nbytes for group in groups(catalog.entries, objects.names))
        size = unit_size(total, ranks, objects.config.memory_bytes())
        self.cut, of = fragments(catalog, (), size)
        self.name_of = {key: fragment.name for key, fragment in of.items()}
        self.wanted = [group for group in groups(self.cut.entries, objects.names) if group.nbytes]
        self.shares = split(self.wanted, ranks)
        self.places = {
            key: self._place(key, of[key], targets) for group in self.wanted for key in group.names
        }
        sizes = {key: place.nbytes for key, place in self.places.items()}
        self.units = [*in_rounds([units(share, sizes, rank, size) for rank, share in enumerate(self.shares)])]

    def _place(self, key: str, fragment: Fragment, targets: Mapping[str, torch.Tensor]) -> _Place:
        target = targets[fragment.name].detach()
        target = target if fragment.where is None else target[fragment.where]
        stored = tensors.dtype_of(self.cut.entries[key].dtype, self._objects.uri)
        return _Place(target, min(target.dtype, stored, key=lambda dtype: dtype.itemsize))

    @cached_property
    def digest(self) -> str:
        """What tells this plan from any other: versions of objects, names, places in them, dtypes, order."""
        digest = hashlib.sha256(json.dumps(self._objects.versions).encode())
        for unit in self.units:
            digest.update(json.dumps([unit.owner, unit.nbytes]).encode())
            for key in unit.keys:
                entry, place = self.cut.entries[key], self.places[key]
                said = [key, entry.dtype, entry.shape, list(place.target.shape), str(place.wire)]
                digest.update(json.dumps(said).encode())
                digest.update(repr([piece.start for piece in entry.pieces]).encode())
        return digest.hexdigest()

    def into(self, rank: int) -> dict[str, torch.Tensor]:
        """Return the memory that a rank's fragments are read straight into, by key."""
        keys = (group.names[0] for group in self.shares[rank] if group.is_alone)
        return {
            key: bytes_of(self.places[key].target)
            for key in keys
            if lies_as_stored(self.cut.entries[key], self.places[key].target, self._objects.uri)
        }


class Exchange:
    """One run through a plan.

    Args:
        plan: the plan.
        agreement: with the other ranks.
        uri: the checkpoint, for messages.
    """

    def __init__(self, plan: Plan, agreement: Agreement[Members], uri: object) -> None:
        self._plan = plan
        self._agreement = agreement
        self._rank = agreement.members.rank
        self._device = agreement.members.device
        self._uri = uri
        self._into = plan.into(self._rank)
        largest = max((unit.nbytes for unit in plan.units), default=0)
        self._ring = Ring(2 * _UNDER_WAY * largest, self._allocate)
        self._on_way = {
            key: (unit, start)
            for unit in plan.units
            if unit.owner == self._rank
            for key, start in zip(unit.keys, unit.starts, strict=True)
        }
        self._filling: dict[Unit, torch.Tensor] = {}
        self._under_way: collections.deque[tuple[Unit, Work, torch.Tensor]] = collections.deque()
        self.received = 0
        """Bytes that came from other ranks so far."""

    @property
    def into(self) -> Mapping[str, torch.Tensor]:
        """The memory of this rank's fragments that are read straight into it."""
        return self._into

    def run(self, arriving: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Exchange all, as this rank's share arrives.

        Args:
            arriving: the fragments of the share, in their order.

        Raises:
            GroupError: another rank has failed, or what is about the checkpoint in its own class.
            StoreError: the share cannot be read.
        """
        self._agreement.settle = self._settle
        with torch.inference_mode():  # outside of which tensors that were made in it cannot be written
            for unit in self._plan.units:
                if unit.owner == self._rank:
                    self._take(unit, arriving)
                self._enter(unit)
                while len(self._under_way) >= _UNDER_WAY:
                    self._finish_first()
            while self._under_way:
                self._finish_first()
            for _ in arriving:  # nothing, but what a witness still waits for
                raise AssertionError("a fragment belongs to no unit")

    def _take(self, unit: Unit, arriving: Iterator[tuple[str, torch.Tensor]]) -> None:
        """Wait until a unit of this rank's own is complete: they are in the order of their last ones."""
        key = ""
        while key != unit.keys[-1]:
            self._agreement.check()
            key, tensor = next(arriving)
            self._put(key, tensor)

    def _put(self, key: str, tensor: torch.Tensor) -> None:
        """Take a fragment that has arrived to where it is to be, and onto the wire."""
        place = self._plan.places[key]
        unit, start = self._on_way[key]
        if key not in self._into:
            copy(place.target, tensor)
        if unit not in self._filling:
            self._filling[unit] = self._memory_of(unit)
        if not self._is_direct(unit):
            place.pack(tensor, self._filling[unit][start : start + place.nbytes])

    def _enter(self, unit: Unit) -> None:
        memory = self._filling.pop(unit, None)
        memory = self._memory_of(unit) if memory is None else memory
        self._under_way.append((unit, self._agreement.members.broadcast(memory, unit.owner), memory))
        self._agreement.entered += 1

    def _finish_first(self) -> None:
        unit, work, memory = self._under_way[0]
        self._agreement.finish(work)
        self._under_way.popleft()
        direct = self._is_direct(unit)
        if unit.owner != self._rank:
            self.received += unit.nbytes
            for key, start in zip(unit.keys, unit.starts, strict=True):
                place = self._plan.places[key]
                if not direct:
                    place.unpack(memory[start : start + place.nbytes])
        if not direct:
            self._ring.give_back(memory)

    def _is_direct(self, unit: Unit) -> bool:
        return len(unit.keys) == 1 and self._plan.places[unit.keys[0]].direct(self._device) is not None

    def _memory_of(self, unit: Unit) -> torch.Tensor:
        """Return what a unit is sent from, or received into."""
        direct = self._plan.places[unit.keys[0]].direct(self._device) if len(unit.keys) == 1 else None
        return self._ring.lend(unit.nbytes, self._uri) if direct is None else direct

    def _allocate(self, nbytes: int, uri: object) -> torch.Tensor:
        if self._device.type == "cpu":
            return tensors.allocate(nbytes, uri)
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def _settle(self, furthest: int) -> None:
        """Enter the collectives up to the furthest that any rank has entered, and wait for all to end."""
        for unit in self._plan.units[self._agreement.entered : furthest]:
            self._enter(unit)
        until = time.monotonic() + _SETTLED
        for _, work, _ in self._under_way:
            while not work.is_completed():
                if time.monotonic() > until:
                    raise RuntimeError("a collective does not end")
                time.sleep(0.001)
            work.wait()


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its bytes lie one behind the other, and are its elements."""
    return tensor.is_contiguous() and not (tensor.is_conj() or tensor.is_neg())
