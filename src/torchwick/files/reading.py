"""Where bytes come from: blocks for small reads anywhere, a stream for large ones and those in order."""

from __future__ import annotations

from torchwick.config import TransferConfig
from torchwick.files.blocks import Blocks
from torchwick.files.stream import Stream
from torchwick.store import ObjectInfo, Store

__all__ = ["Reading"]

_AT_MOST = 256 << 20  # bytes held for the reader: a quarter of a second of the fastest networks today
_LARGE = 1 << 20  # bytes of a read, or of reads in order, that are worth many connections
_GAP = 1 << 20  # bytes that may be left out between two reads in order, such as the headers in a zip archive


class Reading:
    """One version of an object, read at the places that are asked for; one thread at a time.

    Args:
        store: where the object is.
        info: the object.
        size: its bytes.
        config: how to read.
        head: its first bytes.
    """

    def __init__(
        self, store: Store, info: ObjectInfo, size: int, config: TransferConfig, head: memoryview
    ) -> None:
        self.size = size
        """Bytes of the object."""
        limit = min(config.memory_bytes(), _AT_MOST)
        self._blocks = Blocks(store, info, size, config, limit // 8)
        self._blocks.add(0, head)
        self._stream = Stream(store, info, size, config, limit - limit // 8)
        self._stop = 0  # where the read before stopped
        self._run = 0  # bytes of the reads up to there that were in order

    def read(self, start: int, into: memoryview) -> None:
        """Fill `into`, which ends within the object, with the bytes from `start` on.

        Raises:
            StoreError: they cannot be read.
        """
        if not 0 <= start - self._stop <= _GAP:
            self._run = 0
        at, stop = start, start + len(into)
        while at < stop:
            at += self._some(at, into[at - start :])
        self._stop = stop
        self._run += len(into)

    def _some(self, at: int, into: memoryview) -> int:
        """Read, or have read, what is there from `at` on; return how many bytes are in `into` now."""
        if self._stream.holds(at):
            return self._stream.read(at, into, ahead=2 * self._run)
        known = self._blocks.find(at)
        if known is None and max(len(into), self._run) >= _LARGE:
            return self._stream.read(at, into, ahead=2 * self._run)
        if known is None:
            self._blocks.fetch(at, at + len(into))
            return 0
        count = min(len(known), len(into))
        into[:count] = known[:count]
        return count

    def cancel(self) -> None:
        """Stop reading ahead, without waiting for it."""
        self._stream.cancel()

    def close(self) -> None:
        """Stop reading ahead, and forget all that was read."""
        self._stream.close()
        self._blocks.clear()
