"""Runs a plan: connections that read straight into the destination memory, until all of it is there.

Each worker thread owns one connection and takes one part after the other from the supply. The calling thread
watches, reports progress, decides on the number of connections, and has late parts raced. Whatever ends a
transfer (the last part, an error, Ctrl-C, `cancel`), it ends with the supply closed, every connection aborted
or idle and every thread joined: none is left that could still write into memory the caller has back.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, wait

from torchwick.config import TransferConfig
from torchwick.store import Store
from torchwick.transfer.budget import Budget
from torchwick.transfer.meter import Meter
from torchwick.transfer.pace import Pace
from torchwick.transfer.race import Racer, Starter
from torchwick.transfer.reader import Reader
from torchwick.transfer.supply import Supply
from torchwick.transfer.tally import Tally
from torchwick.transfer.threads import Threads
from torchwick.transfer.work import Work
from torchwick.transfer.worker import Worker

__all__ = ["Transfer"]

_TICK = 0.1  # seconds between looks at the transfer


class Transfer:
    """Reads what one supply hands out, once.

    Args:
        store: where the objects are.
        supply: what to read; closed at the end.
        config: how.
        on_progress: called on the calling thread about ten times a second with (bytes there, connections).
        budget: what the load may spend on failures; by default one for this transfer alone.
    """

    def __init__(
        self,
        store: Store,
        supply: Supply,
        config: TransferConfig,
        on_progress: Callable[[int, int], object] | None = None,
        *,
        budget: Budget | None = None,
    ) -> None:
        self._store = store
        self._supply = supply
        self._config = config
        self._on_progress = on_progress
        self._budget = budget or Budget(config)
        self._starter = Starter(config)
        self._work = Work(supply, config, self._budget, self._starter.took)
        self._surplus: collections.deque[bool] = collections.deque()
        self._readers: list[Reader] = []
        self._threads = Threads("read")
        self._most = 0
        self._cancelled = threading.Event()

    def run(self) -> Tally:
        """Read every part and return what it took, or what it took up to `cancel`.

        Raises:
            StoreError: a part could not be read. The memory of the parts is then in no defined state.
        """
        self._budget.begin()
        try:
            self._watch()
        finally:
            self._supply.close()  # first: no connection wakes a worker that waits for a part
            for reader in self._readers:
                reader.stop()
            self._threads.join()
        return sum((reader.tally for reader in self._readers), Tally(connections=self._most))

    def cancel(self) -> None:
        """Have `run` return soon, whatever is missing; called from any thread, at any time.

        It returns as it does at the end, with every thread joined. Whether a part is there its witness knows;
        the memory of the others is in no defined state.
        """
        self._cancelled.set()
        self._supply.close()

    def _watch(self) -> None:
        pace = Pace.of(self._config.connections, secure=self._store.secure)
        meter = Meter()
        running = self._start(pace.connections)
        while running and not self._cancelled.is_set():
            self._most = max(self._most, self._busy(running), 1)
            running = _after_a_tick(running)
            wanted = pace.adapt(meter.read(self._readers, starved=self._supply.idle > 0))
            self._call_back(self._busy(running) - wanted)
            running |= self._start(wanted - self._busy(running))
            running |= self._race(wanted - self._busy(running))
            if running and self._on_progress is not None:
                self._on_progress(sum(reader.there for reader in self._readers), self._busy(running))

    def _busy(self, running: set[Future[None]]) -> int:
        """Return how many connections are at work: a worker that waits for a part leaves its own free."""
        return len(running) - self._supply.idle

    def _start(self, count: int) -> set[Future[None]]:
        """Start so many more workers, as far as there are parts for them."""
        return {self._begin(self._new_worker()) for _ in range(min(count, self._work.ready))}

    def _new_worker(self) -> Worker:
        return Worker(
            self._store,
            self._work,
            self._surplus,
            finished=self._starter.note,
            config=self._config,
            budget=self._budget,
        )

    def _call_back(self, surplus: int) -> None:
        """Have so many workers leave, and no more: calls that no one took yet are taken back."""
        self._surplus.clear()
        self._surplus.extend([True] * surplus)

    def _race(self, free: int) -> set[Future[None]]:
        """Have a connection that has nothing else to do race for the part that is latest."""
        if self._work.ready or free <= 0:
            return set()
        jobs = [reader.job for reader in self._readers if isinstance(reader, Worker)]
        job = self._starter.choose(job for job in jobs if job is not None)
        if job is None:
            return set()
        racer = Racer(self._store, job, self._config, self._budget)
        return {self._begin(racer)} if job.enter(racer) else set()

    def _begin(self, reader: Reader) -> Future[None]:
        self._readers.append(reader)
        return self._threads.start(reader)


def _after_a_tick(running: set[Future[None]]) -> set[Future[None]]:
    """Wait a little, and return those that still run, or raise what made one fail."""
    done, not_done = wait(running, timeout=_TICK, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return not_done
