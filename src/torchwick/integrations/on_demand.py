"""The tensors of a checkpoint as stand-ins: each is read when a library asks for it, or shortly before.

transformers asks for tensors one by one, in the order of their names, on a few threads. To wait for the
network at each would be slow. So one stream reads them all in that order, ahead of who asks, within a bound
of memory; a tensor asked for is the one that was read, and no copy of it is kept.
"""

from __future__ import annotations

import collections
import threading
from contextlib import ExitStack
from types import EllipsisType, TracebackType
from typing import Any, Self

import torch

from torchwick.checkpoint.layout import Group, groups
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.reading import Reader
from torchwick.checkpoint.request import wanted
from torchwick.checkpoint.streaming import Stream
from torchwick.checkpoint.tensors import dtype_of
from torchwick.formats.catalog import Catalog, TensorEntry
from torchwick.loading.selected import Selection
from torchwick.report import ProgressCallback

__all__ = ["OnDemand", "StandIn", "asking_order"]

_MOST_WAITING = 1 << 30  # bytes that were read and not asked for: they are read again if they are, after all


def asking_order(name: str) -> list[tuple[int, int, str]]:
    """Return the key that sorts names as transformers does before it asks: layer 2 before layer 10.

    Example:
        >>> sorted(["layers.10.a", "layers.2.b", "layers.2.a", "embed"], key=asking_order)
        ['embed', 'layers.2.a', 'layers.2.b', 'layers.10.a']
    """
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]


class StandIn:
    """Stands in for a tensor, as safetensors' slices do: ``[...]`` is the tensor."""

    def __init__(self, source: OnDemand, name: str, entry: TensorEntry) -> None:
        self._source = source
        self._name = name
        self._entry = entry

    def __getitem__(self, index: Any) -> torch.Tensor:
        """Return the tensor, which is the caller's alone; or a part, of which no more is read."""
        if isinstance(index, EllipsisType):
            return self._source.take(self._name)
        return self._source.part(self._name, index)

    @property
    def dtype(self) -> torch.dtype:
        """Torch's dtype."""
        return dtype_of(self._entry.dtype, self._source.uri)

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the dimensions."""
        return self._entry.shape

    def is_floating_point(self) -> bool:
        """Whether its elements are floating-point numbers."""
        return self.dtype.is_floating_point

    def get_dtype(self) -> str:
        """Return the dtype as safetensors spells it."""
        return self._entry.dtype

    def get_shape(self) -> list[int]:
        """Return the lengths of the dimensions."""
        return list(self._entry.shape)


class OnDemand:
    """Reads the tensors of a checkpoint ahead of who asks for them. A context manager, which begins to read.

    Every object is held against the checksum that the store keeps of it, if it keeps one; `finish` says so.

    Args:
        catalog: where the tensors are.
        objects: where that is.
        on_progress: called about ten times a second, on the threads that ask; or None.

    Raises:
        MemoryLimitError: one tensor alone is larger than the memory limit.
    """

    def __init__(self, catalog: Catalog, objects: Objects, on_progress: ProgressCallback | None) -> None:
        self.uri = objects.uri
        self._catalog = catalog
        self._objects = objects
        self._reader = Reader(catalog, objects)
        self._selection = Selection(catalog, objects, [*catalog.entries], on_progress)
        self._changing = threading.Lock()
        self._coming = set(catalog.entries)
        self._waiting = collections.OrderedDict[str, torch.Tensor]()
        self._held = 0
        self._most = min(objects.config.memory_bytes(), _MOST_WAITING)
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        ordered = sorted(groups(self._catalog.entries, self._objects.names), key=_first_asked)
        ranges = {name: wanted(name, ordered, self._objects) for name in self._objects.names}
        with ExitStack() as questions:
            watches = self._selection.watches(questions, ranges, verify="auto")
            self._stream = Stream(
                ordered,
                self._catalog,
                self._objects,
                watches=watches,
                on_progress=self._selection.tell,
            )
        self._stream.__enter__()
        self._tensors = iter(self._stream)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._error = self._error or ValueError(f"{self.uri}: the load has ended")
        self._stream.__exit__()  # which wakes who waits for a tensor
        with self._changing:
            self._waiting.clear()

    def stand_ins(self) -> dict[str, StandIn]:
        """Return what stands in for each tensor, by name."""
        return {name: StandIn(self, name, entry) for name, entry in self._catalog.entries.items()}

    def take(self, name: str) -> torch.Tensor:
        """Return a tensor, from any thread, and keep nothing of it.

        Raises:
            StoreError: it cannot be read, or one before it could not.
            IntegrityError: an object's bytes are not those that were stored.
        """
        while name in self._coming:
            with self._changing:
                if name in self._coming:
                    self._advance()
        with self._changing:
            self._check()
            tensor = self._waiting.pop(name, None)
            if tensor is not None:
                self._held -= tensor.nbytes
        return self._reader.read([name])[name] if tensor is None else tensor

    def part(self, name: str, index: Any) -> torch.Tensor:
        """Return ``tensor[index]``, of which only the bytes it needs are read.

        Raises:
            StoreError: it cannot be read.
        """
        return self._reader.read_part(name, index)

    def finish(self) -> None:
        """Read what no one asked for past who watches, for the checksums are of all there is.

        Raises:
            StoreError: it cannot be read, or what was asked for could not.
            IntegrityError: an object's bytes are not those that were stored.
        """
        with self._changing:
            self._most = 0
            self._check()
            while self._advance():
                pass
        self._selection.tell_end()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _advance(self) -> bool:
        """Wait for the next tensor of the stream; return whether there was one."""
        self._check()
        try:
            name, tensor = next(self._tensors)
        except StopIteration:
            self._coming.clear()
            return False
        except BaseException as error:
            if self._error is not None:  # the load has ended, which is why there is no tensor
                raise self._error from error
            self._error = error
            self._coming.clear()
            raise
        self._coming.discard(name)
        self._waiting[name] = tensor
        self._held += tensor.nbytes
        while self._held > self._most and len(self._waiting) > 1:  # what no one asks for goes
            self._held -= self._waiting.popitem(last=False)[1].nbytes
        return True


def _first_asked(group: Group) -> list[tuple[int, int, str]]:
    return min(map(asking_order, group.names))
