"""Runs a plan: connections that read straight into the destination memory, until all of it is there.

Each worker thread owns one connection and takes one part after the other. The calling thread watches,
reports progress, decides on the number of connections, and has late parts raced. Whatever ends a transfer
(the last part, an error, Ctrl-C), it ends with every connection aborted or idle and every thread joined: none
is left that could still write into memory the caller has back.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait

from torchwick.config import TransferConfig
from torchwick.store import Store
from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import NoWitness, Witness
from torchwick.transfer.job import Job
from torchwick.transfer.pace import Pace, Reading, cores
from torchwick.transfer.plan import Part
from torchwick.transfer.race import Racer, Starter
from torchwick.transfer.reader import Reader
from torchwick.transfer.tally import Tally
from torchwick.transfer.worker import Worker

__all__ = ["Transfer"]

_TICK = 0.1  # seconds between looks at the transfer


class Transfer:
    """One run of one plan.

    Args:
        store: where the objects are.
        parts: what to read, in the order to begin with.
        config: how.
        on_progress: called on the calling thread about ten times a second with (bytes there, connections).
        budget: what the load may spend on failures; by default one for this transfer alone.
        witness: sees what arrives, on the threads that read; by default no one does.
    """

    def __init__(
        self,
        store: Store,
        parts: Sequence[Part],
        config: TransferConfig,
        on_progress: Callable[[int, int], object] | None = None,
        *,
        budget: Budget | None = None,
        witness: Witness | None = None,
    ) -> None:
        self._store = store
        self._parts = parts
        self._config = config
        self._on_progress = on_progress
        self._budget = budget or Budget(config)
        self._witness = witness or NoWitness()
        self._waiting: collections.deque[Job] = collections.deque()
        self._surplus: collections.deque[bool] = collections.deque()
        self._readers: list[Reader] = []
        self._most = 0

    def run(self) -> Tally:
        """Read every part and return what it took.

        Raises:
            StoreError: a part could not be read. The memory of the parts is then in no defined state.
        """
        if not self._parts:
            return Tally()
        self._budget.begin()
        self._waiting.extend(Job(part, self._config, self._budget, self._witness) for part in self._parts)
        # A part has at most a worker and a racer at once.
        with ThreadPoolExecutor(2 * len(self._parts), thread_name_prefix="torchwick-read") as pool:
            try:
                self._watch(pool)
            finally:
                for reader in self._readers:
                    reader.stop()
        return sum((reader.tally for reader in self._readers), Tally(connections=self._most))

    def _watch(self, pool: ThreadPoolExecutor) -> None:
        pace = Pace.of(self._config.connections, secure=self._store.secure)
        starter = Starter(self._parts, self._config)
        meter = _Meter()
        running = self._start(pool, pace.connections, starter)
        while running:
            self._most = max(self._most, len(running))
            running = _after_a_tick(running)
            wanted = pace.adapt(meter.read(self._readers))
            self._call_back(len(running) - wanted)
            running |= self._start(pool, wanted - len(running), starter)
            running |= self._race(pool, wanted - len(running), starter)
            if running and self._on_progress is not None:
                self._on_progress(sum(reader.there for reader in self._readers), len(running))

    def _start(self, pool: ThreadPoolExecutor, count: int, starter: Starter) -> set[Future[None]]:
        """Start so many more workers, as far as there are parts for them."""
        return {self._submit(pool, self._new_worker(starter)) for _ in range(min(count, len(self._waiting)))}

    def _new_worker(self, starter: Starter) -> Worker:
        return Worker(
            self._store,
            self._waiting,
            self._surplus,
            finished=starter.note,
            config=self._config,
            budget=self._budget,
        )

    def _call_back(self, surplus: int) -> None:
        """Have so many workers leave, and no more: calls that no one took yet are taken back."""
        self._surplus.clear()
        self._surplus.extend([True] * surplus)

    def _race(self, pool: ThreadPoolExecutor, free: int, starter: Starter) -> set[Future[None]]:
        """Have a connection that has nothing else to do race for the part that is latest."""
        if self._waiting or free <= 0:
            return set()
        job = starter.choose(
            reader.job for reader in self._readers if isinstance(reader, Worker) and reader.job
        )
        if job is None:
            return set()
        racer = Racer(self._store, job, self._config, self._budget)
        return {self._submit(pool, racer)} if job.enter(racer) else set()

    def _submit(self, pool: ThreadPoolExecutor, reader: Reader) -> Future[None]:
        self._readers.append(reader)
        return pool.submit(reader.run)


def _after_a_tick(running: set[Future[None]]) -> set[Future[None]]:
    """Wait a little, and return those that still run, or raise what made one fail."""
    done, not_done = wait(running, timeout=_TICK, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
    return not_done


class _Meter:
    """Turns running totals into readings."""

    def __init__(self) -> None:
        self._began = self._wall = time.monotonic()
        self._processor = time.process_time()
        self._there = self._requests = self._throttled = 0

    def read(self, readers: Iterable[Reader]) -> Reading:
        wall, processor = time.monotonic(), time.process_time()
        there = requests = throttled = 0
        for reader in readers:
            there += reader.there
            requests += reader.tally.requests
            throttled += reader.throttled
        seconds = max(wall - self._wall, 1e-6)  # the clock may stand still between two looks
        reading = Reading(
            rate=(there - self._there) / seconds,
            busy=(processor - self._processor) / seconds / cores(),
            at=wall - self._began,
            requests=requests - self._requests,
            throttled=throttled - self._throttled,
        )
        self._wall, self._processor = wall, processor
        self._there, self._requests, self._throttled = there, requests, throttled
        return reading
