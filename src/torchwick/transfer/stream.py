"""Reads an object whose size the server does not say: one stream, from its start to wherever it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO

from torchwick.config import TransferConfig
from torchwick.store import Connection, ObjectInfo, Store
from torchwick.transfer.budget import Budget
from torchwick.transfer.persist import persist
from torchwick.transfer.steady import SteadyBody
from torchwick.transfer.tally import Tally

__all__ = ["read_stream"]

_SLICE = 1 << 20  # bytes


def read_stream(
    store: Store,
    info: ObjectInfo,
    config: TransferConfig,
    file: BinaryIO,
    check: Callable[[int], None],
    *,
    budget: Budget | None = None,
) -> Tally:
    """Write the object into `file`, from its position 0; start again where the stream breaks.

    Args:
        store: where the object is.
        info: the object.
        config: how to read.
        file: where it goes.
        check: called with the bytes there so far; what it raises ends the reading.
        budget: what the load as a whole may spend on failures; by default one of its own.

    Raises:
        StoreError: it could not be read.
    """
    stream = _Stream(info, config, file, check, budget or Budget(config))
    persist(
        stream.read,
        store,
        uri=info.uri,
        wanted=lambda: (0, None),
        config=config,
        budget=stream.budget,
        tally=stream.tally,
    )
    return stream.tally


@dataclass
class _Stream:
    """An object without ranges, and where it goes."""

    info: ObjectInfo
    config: TransferConfig
    file: BinaryIO
    check: Callable[[int], None]
    budget: Budget
    tally: Tally = field(default_factory=lambda: Tally(connections=1))

    def read(self, connection: Connection) -> None:
        """Read from the start: such a server cannot go on where it stopped."""
        self.tally.requests += 1
        self.file.seek(0)
        self.file.truncate()
        body = connection.get(self.info.uri, 0, None, self.info)
        steady, buffer = SteadyBody(body, self.config.timeout, self.budget), memoryview(bytearray(_SLICE))
        try:
            while count := steady.readinto(buffer):
                self.file.write(buffer[:count])
                self.tally.bytes_read += count
                self.check(self.file.tell())
        finally:
            body.close()
