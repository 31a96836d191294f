"""Pieces of an object for small reads at any place: the last ones that were used are kept."""

from __future__ import annotations

import collections

from torchwick.config import TransferConfig
from torchwick.store import ObjectInfo, Store
from torchwick.transfer import RangeCache

__all__ = ["BLOCK", "Blocks"]

BLOCK = 256 << 10
"""Bytes of a block: most headers and zip directories whole; 3 ms of a connection at the 85 MB/s of S3."""
_KEPT = 16 << 20


class Blocks:
    """An object in blocks, fetched when first needed; those that were not used for longest are forgotten.

    The last block brings the one before it, so that a read at the end is enough for a directory there.

    Args:
        store: where the object is.
        info: the object; its size is known.
        size: that size.
        config: how to read.
        limit: the most bytes to keep.
    """

    def __init__(self, store: Store, info: ObjectInfo, size: int, config: TransferConfig, limit: int) -> None:
        self._store = store
        self._info = info
        self._size = size
        self._config = config
        self._kept = max(4, min(limit, _KEPT) // BLOCK)
        self._last = max(0, size - 1) // BLOCK
        self._blocks: collections.OrderedDict[int, memoryview] = collections.OrderedDict()

    def find(self, at: int) -> memoryview | None:
        """Return what is known from `at` on, up to the end of its block; None: nothing."""
        number = at // BLOCK
        block = self._blocks.get(number)
        if block is None:
            return None
        self._blocks.move_to_end(number)
        return block[at - number * BLOCK :]

    def fetch(self, start: int, stop: int) -> None:
        """Fetch the blocks of ``[start, stop)`` with one request, as far as none of them is known.

        Raises:
            StoreError: they cannot be read.
        """
        first, last = start // BLOCK, (stop - 1) // BLOCK
        last = next((n - 1 for n in range(first, last + 1) if n in self._blocks), last)
        if first == last == self._last > 0 and first - 1 not in self._blocks:
            first -= 1
        begin = first * BLOCK
        cache = RangeCache(self._store, self._info.uri, self._config, info=self._info)
        self.add(begin, cache.read(begin, self._stop(last)))

    def add(self, start: int, data: memoryview) -> None:
        """Keep bytes that begin where a block does; those of no whole block are left out."""
        for number in range(start // BLOCK, self._last + 1):
            block = data[number * BLOCK - start : self._stop(number) - start]
            if len(block) < self._stop(number) - number * BLOCK:
                break
            # One of several gets memory of its own, which can be forgotten without the others'.
            self._blocks[number] = block if len(block) == len(data) else memoryview(bytes(block))
        while len(self._blocks) > self._kept:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Forget all of it."""
        self._blocks.clear()

    def _stop(self, number: int) -> int:
        return min((number + 1) * BLOCK, self._size)
