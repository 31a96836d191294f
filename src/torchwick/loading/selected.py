"""Tensors by name, out of one object or of many: read together, by one transfer, each object verified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.batch import Batch
from torchwick.checkpoint.layout import groups
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.verification import Verify, expecting
from torchwick.formats.catalog import Catalog
from torchwick.loading.devices import MapLocation, is_faking, settle
from torchwick.loading.source import WORTH_READING, Source
from torchwick.report import Progress, ProgressCallback

if TYPE_CHECKING:
    from torchwick.transfer import Fill

__all__ = ["Selection", "load_selected"]


class Selection:
    """The tensors that are wanted of a checkpoint.

    Args:
        catalog: where they are.
        objects: where that is.
        names: which.
        on_progress: called about ten times a second, or None.
    """

    def __init__(
        self, catalog: Catalog, objects: Objects, names: Sequence[str], on_progress: ProgressCallback | None
    ) -> None:
        self._catalog = catalog
        self._objects = objects
        self._entries = {name: catalog.entries[name] for name in names}
        self._on_progress = on_progress
        self.sources = [Source(objects.store, objects[name], objects.config, None) for name in objects.names]

    def shapes(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the tensors without their elements."""
        return {
            name: tensors.empty(entry.dtype, entry.shape, self._objects.uri, device)
            for name, entry in self._entries.items()
        }

    def read(self, *, verify: Verify, sha256: str | None) -> dict[str, torch.Tensor]:
        """Return the tensors, on the CPU."""
        wanted = groups(self._entries, self._objects.names)
        batch = Batch(wanted, self._catalog, self._objects, {})
        fills = [batch.request.fills(name) for name in self._objects.names]
        with ExitStack() as questions:
            for source, of_object in zip(self.sources, fills, strict=True):
                source.pinned = sha256 is not None
                if verify is True or sha256 is not None or _is_all(source, of_object):
                    asked = expecting(
                        self._objects.store,
                        source.info,
                        source.config.timeout,
                        verify=verify,
                        sha256=sha256,
                    )
                    source.expected = questions.enter_context(asked)
            self._fill(fills)
        found = dict(batch.tensors())
        return {name: found[name] for name in self._entries}

    def _fill(self, fills: Iterable[Sequence[Fill]]) -> None:
        fills = list(fills)
        size = self._objects.part_size(sum(len(fill.buffer) for of_object in fills for fill in of_object))
        prepared = [source.prepare(of, size) for source, of in zip(self.sources, fills, strict=True)]
        parts = [part for of_object in prepared for part in of_object.parts]
        total = sum(map(len, parts))
        self._objects.transfer(parts, lambda done, connections: self._tell(done, total, connections))
        self._tell(total, total, 0)
        for of_object in prepared:
            of_object.finish()

    def _tell(self, done: int, total: int, connections: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(str(self._objects.uri), done, total, connections))


def _is_all(source: Source, fills: Iterable[Fill]) -> bool:
    """Whether so much of an object is read that the rest is worth reading to verify it."""
    at_hand = sum(len(fill.buffer) for fill in fills) + source.cache.held
    return source.size is not None and source.size - at_hand <= WORTH_READING


def load_selected(
    selection: Selection, map_location: MapLocation, uri: object, *, verify: Verify, sha256: str | None
) -> dict[str, torch.Tensor]:
    """Return the tensors, where they are wanted."""
    device = settle(map_location, uri)
    if device.type == "meta" or is_faking():
        return selection.shapes(device)
    found = selection.read(verify=verify, sha256=sha256)
    # One by one, each CPU tensor let go as soon as it has moved.
    return {name: found.pop(name).to(device) for name in list(found)}
