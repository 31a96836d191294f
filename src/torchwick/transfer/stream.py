"""Reads an object whose size the server does not say: one stream, from its start to wherever it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from torchwick.config import TransferConfig
from torchwick.store import Connection, ObjectInfo, Store
from torchwick.transfer.engine import Tally
from torchwick.transfer.persist import persist

__all__ = ["read_stream"]

_SLICE = 1 << 20  # bytes


def read_stream(
    store: Store,
    info: ObjectInfo,
    config: TransferConfig,
    file: BinaryIO,
    check: Callable[[int], None],
) -> Tally:
    """Write the object into `file`, from its position 0; start again where the stream breaks.

    Args:
        store: where the object is.
        info: the object.
        config: how to read.
        file: where it goes.
        check: called with the bytes there so far; what it raises ends the reading.

    Raises:
        StoreError: it could not be read.
    """
    tally = Tally(connections=1)
    persist(
        lambda connection: _read_once(connection, info, file, tally, check),
        store,
        uri=info.uri,
        wanted=(0, None),
        config=config,
        tally=tally,
    )
    return tally


def _read_once(
    connection: Connection, info: ObjectInfo, file: BinaryIO, tally: Tally, check: Callable[[int], None]
) -> None:
    tally.requests += 1
    file.seek(0)
    file.truncate()
    body = connection.get(info.uri, 0, None, info)
    buffer = memoryview(bytearray(_SLICE))
    try:
        while count := body.readinto(buffer):
            file.write(buffer[:count])
            tally.bytes_read += count
            check(file.tell())
    finally:
        body.close()
