"""Tensors by name, out of one object or of many: read together, by one transfer, each object verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from torchwick.checkpoint import tensors
from torchwick.checkpoint.batch import Batch
from torchwick.checkpoint.layout import groups
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.verification import Verify, expecting
from torchwick.checkpoint.watch import Watch
from torchwick.formats.catalog import Catalog
from torchwick.loading.casting import recast
from torchwick.loading.devices import Placement, is_faking, on_host, settle
from torchwick.loading.feeding import ANY, feed
from torchwick.loading.source import WORTH_READING, Source
from torchwick.loading.storages import storages
from torchwick.loading.whole import Range
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
        self._total = 0  # bytes that will have arrived at the end
        self.sources = [Source(objects.store, objects[name], objects.config, None) for name in objects.names]

    def only(self, names: Sequence[str]) -> Selection:
        """Return the same for these names alone."""
        return self._of(self._catalog, names)

    def _of(self, catalog: Catalog, names: Sequence[str]) -> Selection:
        """Return the same kind of selection, of another catalog of the same objects."""
        return Selection(catalog, self._objects, names, self._on_progress)

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
        sizes = [sum(len(fill.buffer) for fill in of_object) for of_object in fills]
        with self._expecting(sizes, verify=verify, sha256=sha256):
            self._fill(fills)
        found = dict(batch.tensors())
        return {name: found[name] for name in self._entries}

    def fill(
        self,
        targets: Mapping[str, torch.Tensor],
        *,
        verify: Verify,
        sha256: str | None,
        writing: AbstractContextManager[object] = ANY,
    ) -> None:
        """Read the tensors into others, of any dtype and on any device.

        Where the bytes have to be seen in their order, or come in no other, all are read first.

        Args:
            targets: by name.
            verify: as for `torchwick.load`.
            sha256: as for `torchwick.load`.
            writing: entered when the others begin to change.
        """
        if sha256 is not None or not all(map(_comes_in_parts, self.sources)):
            found = self.read(verify=verify, sha256=sha256)
            with writing, torch.inference_mode():
                for name, target in targets.items():
                    target.detach().copy_(found.pop(name))
            return
        with ExitStack() as questions:
            watches = partial(self.watches, questions, verify=verify)
            catalog = replace(self._catalog, entries=self._entries)
            on_progress = self._on_progress and self.tell
            feed(catalog, self._objects, targets, watches, on_progress=on_progress, writing=writing)
        self.tell_end()

    def move(
        self, device: torch.device, dtype: torch.dtype | None, *, verify: Verify, sha256: str | None
    ) -> dict[str, torch.Tensor]:
        """Return the tensors on a device, those that are floating-point cast to `dtype`; ties stay."""
        shared = storages(replace(self._catalog, entries=self._entries), self._objects.names)
        inner = self._of(shared.catalog, [*shared.catalog.entries])
        inner.sources = self.sources  # which are told what was verified
        targets = shared.empty(device, dtype, self._objects.uri)
        inner.fill(targets, verify=verify, sha256=sha256)
        return shared.tensors(self._entries, targets)

    def watches(
        self, questions: ExitStack, wanted: Mapping[str, Sequence[Range]], *, verify: Verify
    ) -> dict[str, Watch]:
        """Return who watches over the objects, having asked what all of them have to come to.

        Args:
            questions: closed when the answers were used.
            wanted: half-open ranges of each object.
            verify: as for `torchwick.load`.

        Raises:
            IntegrityError: one has to be verified, and nothing is known of it.
        """
        ranges = [wanted[name] for name in self._objects.names]
        sizes = [sum(stop - start for start, stop in of_object) for of_object in ranges]
        questions.enter_context(self._expecting(sizes, verify=verify, sha256=None))
        watches = [source.watch(of_object) for source, of_object in zip(self.sources, ranges, strict=True)]
        self._total = sum(sizes) + sum(b - a for watch in watches for a, b in watch.besides)
        return dict(zip(self._objects.names, watches, strict=True))

    @contextmanager
    def _expecting(self, sizes: Sequence[int], *, verify: Verify, sha256: str | None) -> Iterator[None]:
        """Ask what the objects have to come to, if so many bytes of each are read."""
        with ExitStack() as questions:
            for source, size in zip(self.sources, sizes, strict=True):
                source.pinned = sha256 is not None
                if verify is True or sha256 is not None or _is_all(source, size):
                    asked = expecting(
                        self._objects.store,
                        source.info,
                        source.config.timeout,
                        verify=verify,
                        sha256=sha256,
                    )
                    source.expected = questions.enter_context(asked)
            yield

    def _fill(self, fills: Iterable[Sequence[Fill]]) -> None:
        fills = list(fills)
        size = self._objects.part_size(sum(len(fill.buffer) for of_object in fills for fill in of_object))
        prepared = [source.prepare(of, size) for source, of in zip(self.sources, fills, strict=True)]
        parts = [part for of_object in prepared for part in of_object.parts]
        self._total = sum(map(len, parts))
        self._objects.transfer(parts, self.tell)
        self.tell_end()
        for of_object in prepared:
            of_object.finish()

    def tell_end(self) -> None:
        """Say that all has arrived."""
        self.tell(self._total, 0)

    def tell(self, done: int, connections: int) -> None:
        """Say how far it has come, if anyone wants to hear it."""
        if self._on_progress is not None:
            self._on_progress(Progress(str(self._objects.uri), done, self._total, connections))


def _comes_in_parts(source: Source) -> bool:
    return source.size is not None and source.info.ranged


def _is_all(source: Source, wanted: int) -> bool:
    """Whether so many bytes of an object are read that the rest is worth reading to verify it."""
    return source.size is not None and source.size - wanted - source.cache.held <= WORTH_READING


def load_selected(
    selection: Selection, to: Placement, uri: object, *, verify: Verify, sha256: str | None
) -> dict[str, torch.Tensor]:
    """Return the tensors, where they are wanted."""
    device = settle(to.map_location, uri)
    if device.type == "meta" or is_faking():
        shapes = selection.shapes(device)
        if to.dtype is not None:
            recast(shapes, to.dtype, uri)
        return shapes
    if to.dtype is None and on_host(device):
        return selection.read(verify=verify, sha256=sha256)
    return selection.move(device, to.dtype, verify=verify, sha256=sha256)
