"""One read over one connection, tried until it succeeds or no attempt can help."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torchwick.config import TransferConfig
from torchwick.store import Connection, Store
from torchwick.transfer.engine import Tally
from torchwick.transfer.retry import TRANSIENT, Retry
from torchwick.uri import URI

__all__ = ["persist"]

_T = TypeVar("_T")


def persist(
    read: Callable[[Connection], _T],
    store: Store,
    *,
    uri: URI,
    wanted: tuple[int, int | None],
    config: TransferConfig,
    tally: Tally,
) -> _T:
    """Return what `read` returns, calling it again from the start where the network or the store failed.

    Args:
        read: reads over the connection it is given.
        store: where the object is.
        uri: the object, for messages.
        wanted: the half-open range that is read, for messages.
        config: how often to try.
        tally: where the retries are counted.

    Raises:
        StoreError: it could not be read.
    """
    retry = Retry(uri, config.max_attempts, _sleep)
    connection = store.connect()
    try:
        while True:
            try:
                return read(connection)
            except TRANSIENT as error:
                connection.reset()
                retry.failed(error, *wanted)
                tally.retries += 1
    finally:
        connection.release()


def _sleep(seconds: float) -> bool:
    """Sleep on the calling thread, which nothing but a signal cancels."""
    time.sleep(seconds)
    return False
