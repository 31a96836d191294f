"""The threads of one transfer: each runs one reader or sender, and all can be joined.

Not those of a `ThreadPoolExecutor`: at the end of the program Python joins them while the main thread still
counts as alive, so that a reader which waits for memory would never learn that nobody will give it any.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Protocol

__all__ = ["Threads"]


class _Runs(Protocol):
    def run(self) -> None: ...


class Threads:
    """Starts threads, and joins them.

    Args:
        what: what they do, for their names.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._threads: list[threading.Thread] = []

    def start(self, reader: _Runs) -> Future[None]:
        """Run a reader on a thread of its own, and return what will tell how it ended."""
        future: Future[None] = Future()
        name = f"torchwick-{self._what}-{len(self._threads)}"
        # Never a daemon: Python would take the memory away under one that still reads.
        thread = threading.Thread(target=_run, args=(reader, future), name=name, daemon=False)
        self._threads.append(thread)
        thread.start()
        return future

    def join(self) -> None:
        """Wait until every thread has ended."""
        for thread in self._threads:
            if thread.is_alive():  # the last may not have been started: Ctrl-C comes at any moment
                thread.join()


def _run(reader: _Runs, future: Future[None]) -> None:
    try:
        reader.run()
    except BaseException as error:  # noqa: BLE001 - raised by the thread that watches
        future.set_exception(error)
        del reader, future  # the error keeps this frame, which would keep it, and the parts' memory
    else:
        future.set_result(None)
