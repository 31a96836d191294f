"""Hands tensors out one after the other while the next ones are being read, within a bound of memory."""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import torch

from torchwick.checkpoint.batch import OWN, Batch, Memory
from torchwick.checkpoint.layout import Group, batches
from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.watch import Watch
from torchwick.errors import MemoryLimitError
from torchwick.formats.catalog import Catalog
from torchwick.transfer import Ceiling, Fill, Gated, NoWitness, Part, Transfer

__all__ = ["Stream"]

_BATCH = 16 << 20  # bytes of small tensors that are read together: a part, as large as they come
_BETWEEN_CALLS = 0.1  # seconds
_AHEAD = 1 << 30  # bytes read ahead where no limit was given: a second or more of any network today


class _Awaited(NoWitness):
    """A batch, and how many of its bytes are still to come."""

    def __init__(self, batch: Batch, held: int, changed: threading.Condition) -> None:
        self.batch = batch
        self.held = held
        self.left = 0
        self._changed = changed

    def arrived(self, start: int, stop: int, value: int) -> None:  # noqa: ARG002
        """Take note of a part that is there; called on the threads that read."""
        with self._changed:
            self.left -= stop - start
            if not self.left:
                self._changed.notify_all()


class Stream:
    """Reads groups in their order, and yields their tensors.

    A thread of its own runs the transfer. What was read and not yet handed out, and what the caller was
    handed last, counts against the memory limit of the settings; reading goes on as the caller asks for more.
    By default memory is never used twice: a tensor that was handed out is the caller's.

    Args:
        groups: what is read.
        catalog: where it is.
        objects: where that is.
        into: memory of the caller's that tensors are read into, by the name of the one tensor of a group: as
            many bytes as it has. It counts against no limit.
        watches: who watches over objects, by the objects' names.
        memory: lends it for what is not read into the caller's.
        ahead: bytes that are held at most where the settings give no limit, or two of the largest group.
        on_progress: called about ten times a second with (bytes there, connections), on the thread that asks
            for tensors.

    Raises:
        MemoryLimitError: one group alone is larger than the limit.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        catalog: Catalog,
        objects: Objects,
        into: Mapping[str, torch.Tensor] | None = None,
        watches: Mapping[str, Watch] | None = None,
        *,
        memory: Memory = OWN,
        ahead: int = _AHEAD,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._catalog = catalog
        self._objects = objects
        self._into = into or {}
        self._watches = watches or {}
        self._memory = memory
        self._on_progress = on_progress
        self._progress = 0, 0
        self._told = time.monotonic()
        self._besides = {name: collections.deque(watch.besides) for name, watch in self._watches.items()}
        limit = _limit([group for group in groups if group.names[0] not in self._into], objects, ahead)
        self._batches = batches(groups, min(_BATCH, limit // 4))
        self._part_size = objects.part_size(sum(group.nbytes for group in groups))
        self._ceiling = Ceiling(limit)
        self._rank = {name: at for at, name in enumerate(objects.names)}
        self._changed = threading.Condition()
        self._awaited: collections.deque[_Awaited] = collections.deque()
        self._made_all = False
        self._ended = False
        self._error: BaseException | None = None
        supply = Gated(self._parts(), self._ceiling)
        self._transfer = Transfer(objects.store, supply, objects.config, self._note_progress)
        self._thread = threading.Thread(target=self._run, name="torchwick-stream")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._transfer.cancel()
        self._thread.join()

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        before = 0
        while True:
            # The caller has the tensors before until it gets the next: they count as long as that does not
            # keep the next from being read.
            if not self._awaited:
                self._ceiling.give(before)
                before = 0
            awaited = self._next()
            self._ceiling.give(before)
            if awaited is None:
                break
            yield from awaited.batch.tensors()
            before = awaited.held
        for watch in self._watches.values():
            watch.finish()

    def _next(self) -> _Awaited | None:
        """Wait for the batch that comes next; None after the last."""
        while not self._wait():
            self._tell_progress()
        self._tell_progress()
        with self._changed:
            if self._awaited and not self._awaited[0].left:
                return self._awaited.popleft()
            if self._error is not None:
                raise self._error
            return None

    def _wait(self) -> bool:
        """Wait until it is decided what comes next, or it is time to tell of the progress."""
        with self._changed:
            return self._changed.wait_for(self._is_decided, _BETWEEN_CALLS if self._on_progress else None)

    def _note_progress(self, done: int, connections: int) -> None:
        self._progress = done, connections

    def _tell_progress(self) -> None:
        now = time.monotonic()
        if self._on_progress is not None and now - self._told >= _BETWEEN_CALLS:
            self._told = now
            self._on_progress(*self._progress)

    def _is_decided(self) -> bool:
        if self._awaited:
            return not self._awaited[0].left or self._ended
        return self._made_all or self._ended

    def _parts(self) -> Iterator[Part]:
        """Make batches, each once there is memory for it; called on the threads that read."""
        for groups in self._batches:
            held = sum(group.nbytes for group in groups if group.names[0] not in self._into)
            self._ceiling.take(held)
            batch = Batch(groups, self._catalog, self._objects, self._into, self._memory)
            last = max(((r.object, r.stop) for g in groups for r in g.regions), key=self._place, default=None)
            yield from self._parts_of(batch, held, last)
        if any(self._besides.values()):
            yield from self._parts_of(Batch([], self._catalog, self._objects, {}), 0, None)
        with self._changed:
            self._made_all = True
            self._changed.notify_all()

    def _parts_of(self, batch: Batch, held: int, last: tuple[str, int] | None) -> Iterator[Part]:
        """Make the parts of a batch, and of what is to be read besides up to the last byte of it."""
        for name, besides in self._besides.items():
            while besides and (last is None or self._place((name, besides[0][0])) < self._place(last)):
                start, stop = besides.popleft()
                batch.request.add(name, Fill(start, memoryview(bytearray(stop - start))))
        awaited = _Awaited(batch, held, self._changed)
        parts = [*batch.request.seen_parts(self._part_size, awaited, self._watches)]
        awaited.left = sum(map(len, parts))
        with self._changed:
            self._awaited.append(awaited)
            self._changed.notify_all()
        yield from parts

    def _place(self, at: tuple[str, int]) -> tuple[int, int]:
        """Return the place of a byte in the order of the objects and their bytes."""
        return self._rank[at[0]], at[1]

    def _run(self) -> None:
        try:
            self._objects.spend(self._transfer.run())
        except BaseException as error:  # noqa: BLE001 - it is raised where the tensors are asked for
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()


def _limit(groups: Sequence[Group], objects: Objects, ahead: int) -> int:
    """Return the bytes that may be held at once."""
    limit = objects.config.memory_bytes()
    largest = max(groups, key=lambda group: group.nbytes, default=Group((), ()))
    if largest.nbytes > limit:
        raise MemoryLimitError(
            f"tensor {largest.names[0][:100]!r} takes {largest.nbytes} bytes; the memory limit is {limit}",
            uri=objects.uri,
            hint="Raise TransferConfig.memory_limit, or read it in parts: get_slice(name)[…].",
            needed=largest.nbytes,
            limit=limit,
        )
    return min(limit, max(ahead, 2 * largest.nbytes)) if objects.config.memory_limit == "auto" else limit
