"""Requests over one line, sent until one succeeds or no attempt can help."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from torchwick.config import TransferConfig
from torchwick.store import Connection, ObjectInfo, Store
from torchwick.transfer.budget import Budget
from torchwick.transfer.holder import Line
from torchwick.transfer.retry import TRANSIENT, Retry
from torchwick.transfer.tally import Tally
from torchwick.uri import URI

__all__ = ["ask", "keep_on", "list_directory", "persist"]


_T = TypeVar("_T")
_Line = TypeVar("_Line", bound=Line)
Range = tuple[int, int | None]


def keep_on(
    attempt: Callable[[_Line], _T],
    line: _Line,
    retry: Retry,
    *,
    wanted: Callable[[], Range],
    budget: Budget,
    tally: Tally,
) -> _T:
    """Return what `attempt` returns, calling it again wherever the network or the store failed.

    Args:
        attempt: sends a request over the line.
        line: released at the end.
        retry: the failures so far.
        wanted: the half-open range that a failure is about.
        budget: what all requests together may spend; begun.
        tally: where the retries are counted.

    Raises:
        StoreError: it could not be done.
    """
    try:
        while True:
            try:
                result = attempt(line)
            except TRANSIENT as error:
                line.reset()
                retry.failed(error, *wanted(), _sleep)
                tally.retries += 1
            else:
                budget.range_arrived()
                return result
    finally:
        line.release()


def persist(
    read: Callable[[Connection], _T],
    store: Store,
    *,
    uri: URI,
    wanted: Callable[[], Range],
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
    return keep_on(read, store.connect(), retry, wanted=wanted, budget=budget, tally=tally)


def ask(
    question: Callable[[Connection], _T],
    uri: URI,
    store: Store,
    config: TransferConfig,
    tally: Tally | None = None,
) -> _T:
    """Return the answer to one question, asked again wherever the network or the store failed.

    Args:
        question: asks it over the connection it is given.
        uri: what it is about, for messages.
        store: who is asked.
        config: how often to try.
        tally: where the retries are counted, if anyone wants to know.

    Raises:
        StoreError: it was not answered.
    """
    return persist(
        question,
        store,
        uri=uri,
        wanted=lambda: (0, None),
        config=config,
        budget=Budget(config),
        tally=Tally() if tally is None else tally,
    )


def list_directory(
    directory: URI, store: Store, config: TransferConfig, tally: Tally | None = None
) -> dict[str, ObjectInfo] | None:
    """Return what is in a directory by name, or None where the store cannot tell.

    Args:
        directory: its address.
        store: where it is.
        config: how often to try.
        tally: where the retries are counted, if anyone wants to know.

    Raises:
        AccessDeniedError: it may not be listed, whether its objects may be read or not.
        StoreError: see `torchwick.store.base.Connection.list`.
    """
    infos = ask(lambda connection: connection.list(directory), directory, store, config, tally)
    return None if infos is None else {info.uri.key.rpartition("/")[2]: info for info in infos}


def _sleep(seconds: float) -> bool:
    """Sleep on the calling thread, which nothing but a signal cancels."""
    time.sleep(seconds)
    return False
