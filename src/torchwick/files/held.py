"""An object whose server sends no ranges, or no size: held in memory as a whole, as nothing else can seek."""

from __future__ import annotations

import io

from torchwick.config import TransferConfig
from torchwick.errors import MemoryLimitError
from torchwick.store import ObjectInfo, Store
from torchwick.transfer import read_stream

__all__ = ["Held", "hold"]


def hold(store: Store, info: ObjectInfo, config: TransferConfig) -> Held:
    """Read an object whole.

    Args:
        store: where it is.
        info: the object.
        config: how to read it, and how much memory that may take.

    Raises:
        MemoryLimitError: it is larger than the limit.
        StoreError: it cannot be read.
    """
    limit, file = config.memory_bytes(), io.BytesIO()

    def check(count: int) -> None:
        if count > limit:
            raise MemoryLimitError(
                f"the server sends no ranges, so that all {count} bytes or more have to be held in memory; "
                f"the memory limit is {limit}",
                uri=info.uri,
                hint="Raise TransferConfig.memory_limit, or have the object served with ranges and an ETag.",
                needed=count,
                limit=limit,
            )

    check(info.size or 0)
    read_stream(store, info, config, file, check)
    return Held(file)


class Held:
    """Bytes that are all there.

    Args:
        file: holds them.
    """

    def __init__(self, file: io.BytesIO) -> None:
        self._bytes = file.getbuffer()
        self.size = len(self._bytes)
        """How many."""

    def read(self, start: int, into: memoryview) -> None:
        """Fill `into` with the bytes from `start` on."""
        into[:] = self._bytes[start : start + len(into)]

    def cancel(self) -> None:
        """Have nothing to stop."""

    def close(self) -> None:
        """Let go of the bytes."""
        self._bytes = memoryview(b"")
