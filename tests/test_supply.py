"""A transfer serves a stream: it reads as memory becomes free, tells when a part is there, ends on demand."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from conftest import random_bytes, run_python
from faults import Cut, S3Error, SlowDown, Stall
from served import CONTENT, MIB, SIZE, Served, serve
from torchwick import TransferConfig, TransferError
from torchwick.transfer import (
    Ceiling,
    ClosedError,
    Fill,
    Gated,
    Listed,
    Part,
    RangeCache,
    Sums,
    Tally,
    Transfer,
    algorithm,
    pace,
    plan,
)
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from faults import Request
    from faulty import FaultyServer

PART = MIB // 4
STARTS = range(0, SIZE, PART)
CONFIG = TransferConfig(part_size=PART, connections=4, timeout=30)
PROMPT = 4.0  # seconds, on a busy machine; every timeout that must not be what ends a transfer is far longer
PATIENCE = 20.0  # seconds for what has to happen


@pytest.fixture
def served(faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Served:
    return serve(faulty, "s3", monkeypatch, timeout=30)


@pytest.fixture
def prompt() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < PROMPT


def _part(start: int) -> Callable[[Request], bool]:
    return lambda request: request.range is not None and request.range[0] == start


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Stream:
    """The served object, part by part, each in memory of its own, as far as the ceiling allows."""

    def __init__(self, served: Served, parts: int, config: TransferConfig = CONFIG) -> None:
        self.memory: dict[int, bytearray] = {}
        self.arrivals: queue.Queue[int] = queue.Queue()
        self.ceiling = Ceiling(parts * PART)
        self.supply = Gated(self._parts(served), self.ceiling)
        self.transfer = Transfer(served.store, self.supply, config)

    def _parts(self, served: Served) -> Iterator[Part]:
        for start in STARTS:
            size = min(PART, SIZE - start)
            self.ceiling.take(size)
            self.memory[start] = bytearray(size)
            yield from plan(served.info, [Fill(start, memoryview(self.memory[start]))], PART, witness=self)

    def update(self, data: memoryview, value: int) -> int:
        return value + len(data)

    def arrived(self, start: int, stop: int, value: int) -> None:
        assert value == stop - start
        self.arrivals.put(start)

    def next(self) -> int:
        """Where the part that has arrived next begins."""
        return self.arrivals.get(timeout=PATIENCE)

    def give(self, start: int) -> None:
        """Check a part, and give its memory back, of which no view may be left."""
        data = self.memory.pop(start)
        assert data == CONTENT[start : start + PART]
        size = len(data)
        _until(lambda: _is_free(data))
        self.ceiling.give(size)

    @contextmanager
    def running(self) -> Iterator[Future[Tally]]:
        """Run the transfer on a thread of its own."""
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(self.transfer.run)
            try:
                yield future
            finally:
                self.transfer.cancel()


def _is_free(data: bytearray) -> bool:
    try:
        data.clear()
    except BufferError:  # views of it exist
        return False
    return True


class TestWitnesses:
    def test_one_transfer_of_two_objects(self, served: Served) -> None:
        crc, other = algorithm("crc32"), random_bytes(SIZE, seed=1)
        url = served.server.put("bucket/other.pt", other)
        uri = parse("s3://bucket/other.pt")
        assert url.endswith("/bucket/other.pt")
        cache = RangeCache(served.store, uri, CONFIG)
        memory, sums = (bytearray(SIZE), bytearray(SIZE)), (Sums(crc), Sums(crc))
        parts = [
            part
            for info, data, witness in zip((served.info, cache.info), memory, sums, strict=True)
            for part in plan(info, [Fill(0, memoryview(data))], PART, witness=witness)
        ]
        Transfer(served.store, Listed(reversed(parts)), CONFIG).run()
        assert (bytes(memory[0]), bytes(memory[1])) == (CONTENT, other)
        assert [each.folded([SIZE]) for each in sums] == [[crc.update(CONTENT, 0)], [crc.update(other, 0)]]

    def test_an_object_without_ranges_has_one_too(self, served: Served) -> None:
        info, sums = dataclasses.replace(served.info, ranged=False), Sums(algorithm("crc32"))
        [part] = plan(info, [Fill(0, memoryview(bytearray(SIZE)))], witness=sums)
        assert part.witness is sums


class TestStreams:
    def test_no_more_is_asked_for_than_there_is_memory(self, served: Served) -> None:
        stream, given = Stream(served, parts=3), 0
        with stream.running() as future:
            held = [stream.next() for _ in range(3)]
            time.sleep(0.2)  # in which a fourth would be asked for
            while given < SIZE:
                asked = sum(stop - start for start, stop in map(_closed, served.asked))
                assert asked - given <= 3 * PART
                start = held.pop() if held else stream.next()
                given += len(stream.memory[start])
                stream.give(start)
            tally = future.result(PATIENCE)
        assert (tally.bytes_read, tally.requests, tally.retries) == (SIZE, len(STARTS), 0)
        assert stream.ceiling.held == 0

    def test_memory_for_all(self, served: Served) -> None:
        stream = Stream(served, parts=len(STARTS))
        tally = stream.transfer.run()
        assert b"".join(stream.memory[start] for start in STARTS) == CONTENT
        assert tally.requests == len(STARTS)
        assert served.server.connections <= 4 + 1  # the fixture's

    def test_throttled_parts_go_on_while_workers_wait(self, served: Served) -> None:
        served.server.on(SlowDown(), nth=range(1, 5))
        stream = Stream(served, parts=3)
        with stream.running() as future:
            for _ in STARTS:
                stream.give(stream.next())
            assert future.result(PATIENCE).retries >= 3

    @pytest.mark.usefixtures("prompt")
    @pytest.mark.parametrize("after", [-1, 1000])
    def test_a_straggler_is_raced_while_the_others_wait(self, served: Served, after: int) -> None:
        served.server.on(Stall(after), where=_part(0), nth=1)
        stream, there = Stream(served, parts=4), set[int]()
        with stream.running() as future:
            for start in STARTS:  # the caller wants them in order, and gives nothing back before the first
                while start not in there:
                    there.add(stream.next())
                stream.give(start)
            tally = future.result(PATIENCE)
        assert (tally.requests, tally.retries) == (len(STARTS) + 1, 0)

    def test_the_time_without_memory_is_no_silence_of_the_store(self, served: Served) -> None:
        config = dataclasses.replace(CONFIG, connections=1, patience=1.0)
        served.server.on(Cut(0), where=_part(PART), nth=range(1, 3))
        stream = Stream(served, parts=1, config=config)
        with stream.running() as future:
            first = stream.next()
            time.sleep(1.2)  # longer than patience
            stream.give(first)
            for _ in STARTS[1:]:
                stream.give(stream.next())
            assert future.result(PATIENCE).retries == 2

    def test_the_rate_of_a_stream_that_waits_says_nothing_of_its_connections(self) -> None:
        decided = pace.Pace(connections=8, fewest=4)
        rates = (10.0, 100.0, 200.0)
        assert {decided.adapt(pace.Reading(rate, busy=0.9, starved=True)) for rate in rates} == {8}
        assert not decided.settled


def _closed(span: tuple[int, int | None] | None) -> tuple[int, int]:
    assert span is not None
    start, stop = span
    assert stop is not None
    return start, stop


@pytest.mark.usefixtures("prompt")
class TestTheEnd:
    """Whatever ends a stream, nobody is left waiting."""

    def test_an_error_while_others_wait(self, served: Served) -> None:
        served.server.on(S3Error(403, "AccessDenied"), where=_part(PART))
        stream = Stream(served, parts=2)
        with stream.running() as future, pytest.raises(PermissionError):
            future.result(PATIENCE)
        assert stream.supply.take() is None

    def test_a_failure_in_what_makes_the_parts(self, served: Served) -> None:
        def fail() -> Iterator[Part]:
            yield from plan(served.info, [Fill(0, memoryview(bytearray(PART)))])
            raise LookupError("enough")

        supply = Gated(fail(), Ceiling(1))
        with pytest.raises(LookupError, match="enough"):
            Transfer(served.store, supply, CONFIG).run()
        assert supply.take() is None

    def test_an_error_in_the_callback(self, served: Served) -> None:
        def give_up(done: int, connections: int) -> None:
            raise LookupError

        stream = Stream(served, parts=2)
        with pytest.raises(LookupError):
            Transfer(served.store, stream.supply, CONFIG, give_up).run()

    def test_cancelled_while_all_wait(self, served: Served) -> None:
        stream = Stream(served, parts=2)
        with stream.running() as future:
            stream.next(), stream.next()
            _until(lambda: stream.supply.idle == 4)
            stream.transfer.cancel()
            assert future.result(PATIENCE).bytes_read == 2 * PART
        with pytest.raises(ClosedError):
            stream.ceiling.take(1)

    def test_cancelled_while_it_reads(self, served: Served) -> None:
        served.server.on(Stall(1000))
        stream = Stream(served, parts=3)
        with stream.running() as future:
            _until(lambda: len(served.asked) == 3)
            stream.transfer.cancel()
            assert future.result(PATIENCE).requests == 3
        assert stream.arrivals.empty()

    def test_a_list_is_cancelled_too(self, served: Served) -> None:
        served.server.on(Stall(1000))
        parts = plan(served.info, [Fill(0, memoryview(served.memory))], PART)
        transfer = Transfer(served.store, Listed(parts), CONFIG)
        with ThreadPoolExecutor(1) as pool:
            future = pool.submit(transfer.run)
            _until(lambda: len(served.asked) == 4)
            transfer.cancel()
            assert future.result(PATIENCE).retries == 0

    def test_cancelled_before_it_begins(self, served: Served) -> None:
        stream = Stream(served, parts=3)
        stream.transfer.cancel()
        assert stream.transfer.run() == Tally()
        assert served.asked == []

    def test_the_retries_are_used_up_while_others_wait(self, served: Served) -> None:
        served.server.on(Cut(0), where=_part(0))
        stream = Stream(served, parts=2, config=dataclasses.replace(CONFIG, max_attempts=2))
        with stream.running() as future, pytest.raises(TransferError, match="tried 2 times"):
            future.result(PATIENCE)


FORGOTTEN = """
import sys, threading, time
from torchwick import TransferConfig
from torchwick.store.local import LocalStore
from torchwick.transfer import Ceiling, Fill, Gated, RangeCache, Transfer, plan
from torchwick.uri import URI

store, config = LocalStore(), TransferConfig(connections=4)
info = RangeCache(store, URI("file", "", sys.argv[1]), config).info
ceiling = Ceiling(2000)

def parts():
    for start in range(0, info.size, 1000):
        ceiling.take(1000)
        yield from plan(info, [Fill(start, memoryview(bytearray(1000)))])

supply = Gated(parts(), ceiling)
transfer = Transfer(store, supply, config)
threading.Thread(target=transfer.run, daemon=sys.argv[2] == "daemon").start()
while supply.idle < 4:
    time.sleep(0.01)
print("the end", flush=True)
"""


@pytest.mark.parametrize("thread", ["daemon", "thread"])
def test_a_stream_that_is_forgotten_does_not_keep_the_program(tmp_path: Path, thread: str) -> None:
    file = tmp_path / "model.pt"
    file.write_bytes(CONTENT[:10_000])
    started = time.monotonic()
    assert run_python(FORGOTTEN, str(file), thread) == "the end\n"
    assert time.monotonic() - started < PATIENCE


class TestCeiling:
    def test_what_is_given_back_is_free_again(self) -> None:
        ceiling = Ceiling(100)
        for _ in range(3):
            ceiling.take(100)
            assert ceiling.held == 100
            ceiling.give(100)
        assert ceiling.held == 0

    def test_more_than_there_will_ever_be(self) -> None:
        with pytest.raises(ValueError, match="101 bytes are more than the 100"):
            Ceiling(100).take(101)

    def test_first_come_first_served(self) -> None:
        ceiling, order = Ceiling(100), list[int]()
        ceiling.take(60)

        def take(count: int) -> None:
            ceiling.take(count)
            order.append(count)

        with ThreadPoolExecutor(2) as pool:
            large = pool.submit(take, 80)
            _until(lambda: len(ceiling._queue) == 1)
            small = pool.submit(take, 10)
            _until(lambda: len(ceiling._queue) == 2)
            time.sleep(0.05)
            assert ceiling.held == 60  # there is room for the small one, but it came later
            ceiling.give(60)
            large.result(PATIENCE), small.result(PATIENCE)
        assert ceiling.held == 90
        assert sorted(order) == [10, 80]

    def test_closing_wakes_all(self) -> None:
        ceiling = Ceiling(100)
        ceiling.take(100)
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(ceiling.take, 1) for _ in range(3)]
            _until(lambda: len(ceiling._queue) == 3)
            ceiling.close()
            for future in waiting:
                assert isinstance(future.exception(PATIENCE), ClosedError)
        ceiling.give(100)  # whoever holds some may come later
        assert ceiling.held == 0

    def test_many_threads(self) -> None:
        ceiling, most, holding = Ceiling(10), 0, threading.Lock()

        def use() -> None:
            nonlocal most
            for _ in range(50):
                ceiling.take(3)
                with holding:
                    most = max(most, ceiling.held)
                ceiling.give(3)

        with ThreadPoolExecutor(8) as pool:
            for future in [pool.submit(use) for _ in range(8)]:
                future.result(PATIENCE)
        assert (ceiling.held, most <= 10) == (0, True)


class TestGated:
    def test_each_part_once(self, served: Served) -> None:
        parts = plan(served.info, [Fill(0, memoryview(served.memory))], 10_000)
        supply = Gated(parts, Ceiling(1))
        with ThreadPoolExecutor(8) as pool:
            taken = [future.result() for future in [pool.submit(_all_of, supply) for _ in range(8)]]
        starts = [part.start for some in taken for part in some]
        assert sorted(starts) == [part.start for part in parts]
        assert (supply.ready, supply.idle) == (0, 0)

    def test_closing_ends_one_that_asks_and_those_behind(self, served: Served) -> None:
        ceiling = Ceiling(1)
        ceiling.take(1)

        def wait() -> Iterator[Part]:
            ceiling.take(1)
            yield from plan(served.info, [Fill(0, memoryview(served.memory))])

        supply = Gated(wait(), ceiling)
        assert supply.ready > 64
        with ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(supply.take) for _ in range(3)]
            _until(lambda: supply.idle == 3)
            assert supply.ready == 0
            supply.close()
            assert [future.result(PATIENCE) for future in waiting] == [None] * 3


def _all_of(supply: Gated) -> list[Part]:
    return list(iter(supply.take, None))
