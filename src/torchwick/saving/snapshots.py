"""Copies of tensors, on their way from the thread that goes on with them to the one that writes.

What is copied and not yet taken counts against a bound; whoever copies waits for room.
"""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError

import torch

from torchwick.saving.elements import snapshot
from torchwick.saving.files import Content
from torchwick.transfer import Ceiling, ClosedError

__all__ = ["Snapshots"]

_SLICE = 16 << 20  # bytes of one copy
_LEAST = 16  # bytes of the widest element


class Snapshots:
    r"""A queue of copies, filled by one thread and emptied by another.

    Args:
        limit: bytes that may be held at once.

    Example:
        >>> snapshots = Snapshots(1 << 20)
        >>> snapshots.fill([torch.tensor([1, 2], dtype=torch.uint8)])
        >>> [[bytes(part) for part in content] for content in snapshots.contents(1)]
        [[b'\x01\x02']]
    """

    def __init__(self, limit: int) -> None:
        self._slice = max(_LEAST, min(_SLICE, limit // 2))
        self._ceiling = Ceiling(max(limit, self._slice))
        self._queue: queue.SimpleQueue[memoryview | CancelledError | None] = queue.SimpleQueue()

    def fill(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy tensors, each stretch as soon as there is room; when it returns, they may be changed.

        Raises:
            ClosedError: no one empties the queue any more.
        """
        for tensor in tensors:
            parts, left = snapshot(tensor, tensor.dtype, self._slice), tensor.nbytes
            while left:
                room = min(self._slice, left)
                self._take(room)
                part = next(parts)
                self._ceiling.give(room - len(part))
                left -= len(part)
                self._queue.put(part)
            self._queue.put(None)

    def _take(self, room: int) -> None:
        try:
            self._ceiling.take(room)
        except ClosedError:
            self._drain()  # of what was put there while it was closed
            raise

    def contents(self, count: int) -> Iterator[Content]:
        """Yield the bytes of so many tensors, as they are copied.

        Raises:
            CancelledError: they are copied no more.
        """
        return (self._content() for _ in range(count))

    def _content(self) -> Iterator[memoryview]:
        while (part := self._queue.get()) is not None:
            if isinstance(part, CancelledError):
                raise part
            yield part
            self._ceiling.give(len(part))

    def abort(self) -> None:
        """Have whoever waits for a copy raise `CancelledError`; called from any thread."""
        self._queue.put(CancelledError())

    def close(self) -> None:
        """Let go of all copies, and have whoever waits for room raise `ClosedError`; from any thread."""
        self._ceiling.close()
        self._drain()

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
