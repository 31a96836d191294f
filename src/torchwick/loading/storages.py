"""Tensors by name as the storages they share: each is read once, cast and moved once, and they stay tied."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.layout import Group, groups
from torchwick.formats.catalog import Catalog, Piece, TensorEntry
from torchwick.formats.dtypes import DTYPES, FLOATS
from torchwick.loading.casting import COUNTER

__all__ = ["Storages", "storages"]


@dataclass(frozen=True)
class _View:
    """A tensor, seen as elements of a storage."""

    storage: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    lazy: tuple[str, ...]


@dataclass(frozen=True)
class Storages:
    """What is read in place of tensors that share it.

    Attributes:
        catalog: storages, and the tensors that share none.
        counters: names of those that are not cast.
    """

    catalog: Catalog
    counters: frozenset[str] = frozenset()
    _views: Mapping[str, _View] = field(default_factory=dict)

    def empty(self, device: torch.device, dtype: torch.dtype | None, uri: object) -> dict[str, torch.Tensor]:
        """Return what they are read into, by name; floating-point ones of `dtype`, if it is given."""
        return {
            name: self._empty(name, entry, device, dtype, uri) for name, entry in self.catalog.entries.items()
        }

    def _empty(
        self, name: str, entry: TensorEntry, device: torch.device, dtype: torch.dtype | None, uri: object
    ) -> torch.Tensor:
        if dtype is None or entry.dtype not in FLOATS or name in self.counters:
            return tensors.empty(entry.dtype, entry.shape, uri, device)
        return torch.empty(entry.shape, dtype=dtype, device=device)

    def tensors(self, names: Iterable[str], read: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors, all of it being read."""
        return {
            name: self._seen(self._views[name], read) if name in self._views else read[name] for name in names
        }

    def _seen(self, view: _View, read: Mapping[str, torch.Tensor]) -> torch.Tensor:
        tensor = torch.as_strided(read[view.storage], view.shape, view.stride, view.offset)
        return tensors.finish(tensor, view.lazy, sys.byteorder)


def storages(catalog: Catalog, order: list[str]) -> Storages:
    """Return what is read for the tensors of a catalog.

    Args:
        catalog: the tensors.
        order: the names of the objects.
    """
    entries: dict[str, TensorEntry] = {}
    views: dict[str, _View] = {}
    for number, group in enumerate(groups(catalog.entries, order)):
        members = {name: catalog.entries[name] for name in group.names}
        if len(members) == 1 or not _is_of_one_kind(group, members.values()):
            entries |= members
            continue
        key = f"{number} {group.names[0]}"
        while key in catalog.entries:
            key += "'"
        entries[key] = _storage(group, members[group.names[0]])
        views |= {name: _view(key, entry, group.regions[0].start) for name, entry in members.items()}
    counters = {name for name, e in entries.items() if not e.shape and name.rpartition(".")[2] == COUNTER}
    return Storages(replace(catalog, entries=entries), frozenset(counters), views)


def _is_of_one_kind(group: Group, entries: Iterable[TensorEntry]) -> bool:
    """Whether the tensors are views of elements that lie one behind the other."""
    (region, *others) = group.regions
    kinds = {(entry.dtype, entry.byteorder) for entry in entries}
    width = DTYPES[next(iter(kinds))[0]].bits // 8
    if others or len(kinds) > 1 or len(region.landmarks) > 1 or not width or len(region) % width:
        return False
    return all(
        isinstance(piece, Piece) and (piece.start - region.start) % width == 0
        for entry in entries
        for piece in entry.pieces
    )


def _storage(group: Group, like: TensorEntry) -> TensorEntry:
    (region,) = group.regions
    count = (len(region) * 8 // DTYPES[like.dtype].bits,)
    landmark = region.landmarks[0] if region.landmarks else None
    piece = Piece(region.object, region.start, count, (1,), region.start, landmark=landmark)
    return TensorEntry(like.dtype, count, (piece,), byteorder=like.byteorder)


def _view(key: str, entry: TensorEntry, start: int) -> _View:
    piece: Any = entry.pieces[0]
    offset = (piece.start - start) * 8 // DTYPES[entry.dtype].bits
    return _View(key, offset, piece.shape, piece.stride, entry.lazy)
