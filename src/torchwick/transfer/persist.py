"""One read over one connection, tried until it succeeds or no attempt can help."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torchwick.config import TransferConfig
from torchwick.store import Connection, Store
from torchwick.transfer.budget import Budget
from torchwick.transfer.retry import TRANSIENT, Retry
from torchwick.transfer.tally import Tally
from torchwick.uri import URI

__all__ = ["persist"]


_T = TypeVar("_T")


def persist(
    read: Callable[[Connection], _T],
    store: Store,
    *,
    uri: URI,
    wanted: Callable[[], tuple[int, int | None]],
    config: TransferConfig,
    budget: Budget,
    tally: Tally,
) -> _T:
    """Return what `read` returns, calling it again wherever the network or the store failed.

    Args:
        read: reads over the connection it is given, from where the call before it stopped.
        store: where the object is.
        uri: the object, for messages.
        wanted: the half-open range that is still to be read.
        config: how often to try.
        budget: what the load as a whole may spend.
        tally: where the retries are counted.

    Raises:
        StoreError: it could not be read.
    """
    budget.begin()
    retry = Retry(uri, wanted()[0], config.max_attempts, budget)
    connection = store.connect()
    try:
        while True:
            try:
                result = read(connection)
            except TRANSIENT as error:
                connection.reset()
                retry.failed(error, *wanted(), _sleep)
                tally.retries += 1
            else:
                budget.range_arrived()
                return result
    finally:
        connection.release()


def _sleep(seconds: float) -> bool:
    """Sleep on the calling thread, which nothing but a signal cancels."""
    time.sleep(seconds)
    return False
