"""A load survives whatever an attempt more can mend, spends little on it, and ends where nothing can."""

from __future__ import annotations

import dataclasses
import io
import threading
import time
from typing import TYPE_CHECKING, Literal

import pytest

from conftest import random_bytes
from faults import (
    Cut,
    ErrorInSuccess,
    Fault,
    Framing,
    IgnoreRange,
    S3Error,
    SlowDown,
    Stall,
    Trickle,
    Truncate,
    WrongETag,
)
from served import CONTENT, MIB, SIZE, Served, serve
from torchwick import ObjectChangedError, StoreError, TransferConfig, TransferError
from torchwick.transfer import Budget, Fill, RangeCache, budget, pace, plan, race, read_stream
from torchwick.transfer.job import Job
from torchwick.transfer.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from faults import Length, Request
    from faulty import FaultyServer

ONE_PART = TransferConfig(part_size=2 * SIZE, connections=1, timeout=5)
PARTS = TransferConfig(part_size=MIB, connections=4, timeout=5)
LAST = (4 * MIB, SIZE)
STARTS = range(0, SIZE, MIB)
PROMPT = 4.0  # seconds, on a busy machine; every timeout that must not be what ends a load is far longer
SHORT = 0.3  # seconds; the timeout that is


def _part(start: int) -> Callable[[Request], bool]:
    return lambda request: request.range is not None and request.range[0] == start


@pytest.fixture(params=["web", "s3"])
def served(request: pytest.FixtureRequest, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Served:
    return serve(faulty, request.param, monkeypatch)


@pytest.fixture
def web(faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Served:
    return serve(faulty, "web", monkeypatch)


@pytest.fixture(params=["plain", "tls"])
def impatient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Served:
    """An object of four parts, over either kind of socket, read with a short timeout."""
    server = request.getfixturevalue("faulty" if request.param == "plain" else "faulty_tls")
    return serve(server, "s3", monkeypatch, timeout=SHORT)


@pytest.fixture
def prompt() -> Iterator[None]:
    started = time.monotonic()
    yield
    assert time.monotonic() - started < PROMPT


class TestResuming:
    @pytest.mark.parametrize("broken", [[0], [2 * MIB], [4 * MIB], list(STARTS)], ids=str)
    def test_where_each_part_stopped(self, served: Served, broken: list[int]) -> None:
        for start in broken:
            served.server.on(Truncate(100), where=_part(start), nth=1)
        tally = served.read(PARTS)
        assert bytes(served.memory) == CONTENT
        ends = [min(start + MIB, SIZE) for start in STARTS]
        first = list(zip(STARTS, ends, strict=True))
        again = [(start + 100, stop) for start, stop in first if start in broken]
        assert sorted(map(str, served.asked)) == sorted(map(str, first + again))
        assert (tally.bytes_read, tally.retries) == (SIZE, len(broken))

    def test_a_small_read(self, web: Served) -> None:
        web.server.on(Truncate(1000), nth=1)
        cache = RangeCache(web.store, web.info.uri, ONE_PART)
        assert cache.head == CONTENT[: 256 << 10]
        assert web.asked == [(0, 256 << 10), (1000, 256 << 10)]

    def test_a_small_read_of_an_object_overwritten_meanwhile(self, web: Served) -> None:
        web.server.on(Truncate(1000), nth=1)
        web.server.on(lambda: web.server.put("bucket/model.pt", CONTENT[::-1]), nth=2)
        with pytest.raises(ObjectChangedError):
            RangeCache(web.store, web.info.uri, ONE_PART)

    def test_a_small_read_without_ranges_begins_again(self, web: Served) -> None:
        web.server.on(IgnoreRange())
        web.server.on(Truncate(1000), nth=1)
        cache = RangeCache(web.store, web.info.uri, ONE_PART)
        assert cache.head == CONTENT[: 256 << 10]
        web.server.on(Truncate(2 * MIB), nth=1)
        assert cache.read(MIB, MIB + 10) == CONTENT[MIB : MIB + 10]


class TestFailures:
    """Of connections and answers, in ways of which each is over with the next attempt."""

    def test_bytes_in_between_start_the_count_anew(self, served: Served) -> None:
        served.server.on(Truncate(MIB), nth=range(1, 5))
        assert served.read(dataclasses.replace(ONE_PART, max_attempts=2)).retries == 4
        assert bytes(served.memory) == CONTENT

    def test_a_handshake_that_is_reset(self, impatient: Served) -> None:
        impatient.server.reset_handshakes = range(1, 3)
        fresh = impatient.patient(PARTS.timeout)  # whose store keeps no connection open yet
        assert fresh.read(ONE_PART).retries == 2
        assert bytes(fresh.memory) == CONTENT

    @pytest.mark.parametrize("lie", [WrongETag(), ErrorInSuccess()], ids=repr)
    def test_an_answer_of_another_version_is_final(self, served: Served, lie: Fault) -> None:
        served.server.on(lie, where=_part(MIB))
        with pytest.raises(StoreError) as caught:
            served.read(dataclasses.replace(PARTS, connections=1))
        assert not isinstance(caught.value, TransferError)
        assert len(served.asked) == 2

    def test_every_third_request_of_many(self, web: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budget, "_EQUIVALENT", 1)  # far fewer retries than are needed: parts give back
        faults: list[Fault] = [Cut(0), SlowDown(), Truncate(1000), S3Error(500, "InternalError")]
        for first, fault in enumerate(faults):
            web.server.on(fault, nth=range(3 * first + 1, 1000, 12))
        tally = web.read(TransferConfig(part_size=MIB // 8, connections=16))
        assert bytes(web.memory) == CONTENT
        assert tally.retries > TransferConfig().max_attempts


class TestBudget:
    def test_a_store_that_breaks_off_for_ever(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(budget, "_EQUIVALENT", 2)
        served.server.on(Truncate(10))
        with pytest.raises(TransferError, match="bytes came in between") as caught:
            served.read(dataclasses.replace(ONE_PART, max_attempts=2))
        error = caught.value
        assert len(served.asked) == 2 * 2 + 1
        assert (error.range, error.attempts) == ((50, SIZE), 1)
        assert "max_attempts" in str(error.hint)
        assert isinstance(error.__cause__, ConnectionError)

    def test_a_connection_that_brought_much_costs_nothing(
        self, web: Served, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(budget, "_EQUIVALENT", 1)
        web.server.on(Truncate(MIB))
        assert web.read(dataclasses.replace(ONE_PART, max_attempts=2)).retries == 4
        assert bytes(web.memory) == CONTENT

    def test_it_is_one_for_workers_and_small_reads(self, web: Served) -> None:
        shared = Budget(dataclasses.replace(PARTS, max_attempts=1))
        while shared.take_retry():
            pass
        web.server.on(Truncate(1000))
        with pytest.raises(TransferError, match="this load"):
            web.read(PARTS, budget=shared)
        with pytest.raises(TransferError, match="this load"):
            RangeCache(web.store, web.info.uri, PARTS, shared)
        with pytest.raises(TransferError, match="this load"):
            read_stream(web.store, web.info, PARTS, io.BytesIO(), lambda size: None, budget=shared)

    def test_silence(self, served: Served) -> None:
        served.server.on(Cut(0))
        config = dataclasses.replace(PARTS, max_attempts=99, patience=0.4)
        started = time.monotonic()
        with pytest.raises(TransferError, match="No byte of the load came for long") as caught:
            served.read(config)
        assert 0.4 <= time.monotonic() - started < PROMPT
        assert caught.value.attempts > 1
        assert "TransferConfig.patience" in str(caught.value.hint)

    def test_bytes_of_other_parts_end_a_silence(self, web: Served) -> None:
        web.server.on(Cut(0), where=_part(0), nth=range(1, 3))  # waits of 0.3 to 0.6 s in all
        web.server.on(Trickle(MIB // 8, 0.03))
        web.read(dataclasses.replace(PARTS, part_size=MIB // 8, connections=2, patience=0.2))
        assert bytes(web.memory) == CONTENT

    @pytest.mark.usefixtures("prompt")
    def test_a_store_that_asks_for_more_than_patience(self, served: Served) -> None:
        served.server.on(SlowDown(retry_after=60))
        with pytest.raises(TransferError, match="left alone for 60 s") as caught:
            served.read(dataclasses.replace(PARTS, patience=59))
        assert "TransferConfig.patience" in str(caught.value.hint)


class TestTooSlow:
    """A byte now and then keeps a socket's timeout from ever passing."""

    @pytest.mark.usefixtures("prompt")
    def test_a_part(self, impatient: Served) -> None:
        impatient.server.on(Trickle(1, 0.05), where=_part(0), nth=1)
        tally = impatient.read(dataclasses.replace(PARTS, timeout=SHORT, connections=1))
        assert bytes(impatient.memory) == CONTENT
        assert tally.retries == 1
        [again] = [asked for asked in impatient.asked if asked and asked[1] == MIB and asked[0]]
        assert 0 < again[0] < 20  # it goes on where the trickle stopped

    @pytest.mark.usefixtures("prompt")
    @pytest.mark.parametrize("length", ["content-length", "chunked", "until-close"])
    def test_a_small_read(self, impatient: Served, length: Length) -> None:
        impatient.server.on(Framing(length))
        impatient.server.on(Trickle(1, 0.05), nth=1)
        config = dataclasses.replace(ONE_PART, timeout=SHORT)
        cache = RangeCache(impatient.store, impatient.info.uri, config)
        assert cache.head == CONTENT[: 256 << 10]
        assert cache.tally.retries == 1

    @pytest.mark.usefixtures("prompt")
    def test_a_stream(self, impatient: Served) -> None:
        impatient.server.on(IgnoreRange("chunked"))
        cache = RangeCache(impatient.store, impatient.info.uri, ONE_PART)
        impatient.server.on(Trickle(1, 0.05), nth=1)
        file, config = io.BytesIO(), dataclasses.replace(ONE_PART, timeout=SHORT)
        tally = read_stream(impatient.store, cache.info, config, file, lambda size: None)
        assert file.getvalue() == CONTENT
        assert tally.retries == 1

    def test_it_is_an_error_in_the_end(self, impatient: Served) -> None:
        impatient.server.on(Trickle(1, 0.05))
        with pytest.raises(TransferError, match=r"only \d+ bytes came in 0\.\d seconds") as caught:
            impatient.read(dataclasses.replace(PARTS, timeout=SHORT, max_attempts=2))
        assert caught.value.attempts == 2  # a trickle is as good as no byte

    @pytest.mark.parametrize("length", ["content-length", "chunked"])
    def test_a_line_that_is_slow_for_everyone_is_kept(
        self, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch, length: Length
    ) -> None:
        content = random_bytes(4000)
        served = serve(faulty, "web", monkeypatch, content=content, timeout=SHORT)
        faulty.on(Framing(length))
        faulty.on(Trickle(50, 0.02))  # 2.5 kB/s for each of two
        tally = served.read(TransferConfig(part_size=2000, connections=2, timeout=SHORT))
        assert bytes(served.memory) == content
        assert (tally.retries, tally.requests) == (0, 2)


class TestRacing:
    LONG = dataclasses.replace(PARTS, timeout=30, connections=8)

    @pytest.fixture
    def served(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Served:
        server = request.getfixturevalue(getattr(request, "param", "faulty"))
        return serve(server, "s3", monkeypatch, timeout=30)

    @pytest.mark.usefixtures("prompt")
    @pytest.mark.parametrize("served", ["faulty", "faulty_tls"], indirect=True)
    @pytest.mark.parametrize("after", [-1, 0, 1000])
    def test_a_stalled_connection_at_the_end_is_overtaken(self, served: Served, after: int) -> None:
        seen: list[int] = []
        served.server.on(Stall(after), where=_part(3 * MIB), nth=1)
        tally = served.read(self.LONG, lambda there, connections: seen.append(there))
        assert bytes(served.memory) == CONTENT
        assert (tally.requests, tally.retries) == (len(STARTS) + 1, 0)
        assert SIZE <= tally.bytes_read <= SIZE + MIB
        assert seen == sorted(seen)
        assert seen[-1] <= SIZE

    @pytest.mark.usefixtures("prompt")
    def test_what_a_racer_brought_is_progress(self, served: Served) -> None:
        seen: list[int] = []
        served.server.on(Stall(1000), where=_part(0), nth=1)
        served.server.on(Trickle(MIB // 10, 0.1), where=_part(3 * MIB))  # one race at a time can be afforded
        served.read(self.LONG, lambda there, connections: seen.append(there))
        assert bytes(served.memory) == CONTENT
        assert seen[-1] > SIZE - MIB

    @pytest.mark.usefixtures("prompt")
    def test_the_next_transfer_goes_on_without_the_line_that_was_stopped(self, served: Served) -> None:
        served.server.on(Stall(1000), where=_part(3 * MIB), nth=1)
        for _ in range(2):
            served.memory[:] = bytes(SIZE)
            served.read(self.LONG)
            assert bytes(served.memory) == CONTENT

    @pytest.mark.usefixtures("prompt")
    @pytest.mark.parametrize("fault", [Stall(1000), Cut(1000), S3Error(403, "AccessDenied"), SlowDown()])
    def test_a_racer_that_gets_nowhere_is_no_matter(self, served: Served, fault: Fault) -> None:
        served.server.on(Trickle(MIB // 8, 0.25), where=_part(3 * MIB), nth=1)
        served.server.on(fault, where=lambda request: request.range == (3 * MIB, 4 * MIB), nth=2)
        served.server.on(
            fault, where=lambda request: request.range is not None and request.range[0] % MIB > 0
        )
        tally = served.read(self.LONG)
        assert bytes(served.memory) == CONTENT
        assert tally.retries == 0
        assert len(served.asked) == len(STARTS) + 1
        assert not [each for each in threading.enumerate() if each.name.startswith("torchwick-")]

    @pytest.mark.parametrize(
        ("config", "fault"),
        [
            (dataclasses.replace(LONG, connections=1), Trickle(MIB // 8, 0.1)),
            (dataclasses.replace(LONG, memory_limit=1000), Trickle(MIB // 8, 0.1)),
            (LONG, SlowDown(retry_after=1)),
        ],
        ids=["one connection", "no memory", "throttled"],
    )
    def test_what_is_not_raced(self, served: Served, config: TransferConfig, fault: Fault) -> None:
        served.server.on(fault, where=_part(3 * MIB), nth=1)
        tally = served.read(config)
        assert bytes(served.memory) == CONTENT
        assert tally.requests == len(STARTS) + tally.retries

    def test_the_bytes_read_twice_are_bounded(self, served: Served) -> None:
        parts = plan(served.info, [Fill(0, memoryview(served.memory))], MIB // 4)
        starter, reader = race.Starter(PARTS), Reader(served.store.connect)
        for part in parts:
            starter.took(part)
        starter.note(parts[0], 0.01)
        jobs = [Job(part, PARTS, Budget(PARTS)) for part in parts]
        for job in jobs:
            job.take(reader)
            job.since -= 60
        raced = 0
        while (late := starter.choose(jobs)) is not None:
            assert late.enter(Reader(served.store.connect))
            raced += len(late.part)
        assert MIB // 4 <= raced <= SIZE // 20 + MIB // 4


class TestThrottling:
    @pytest.mark.parametrize("connections", [8, "auto"])
    def test_half_of_the_connections_are_given_up_at_once(
        self, web: Served, connections: int | Literal["auto"]
    ) -> None:
        web.server.on(SlowDown(retry_after=1), nth=range(1, 9))
        web.server.on(Trickle(MIB // 8, 0.02), nth=range(9, 99))
        tally = web.read(TransferConfig(part_size=MIB // 2, connections=connections))
        assert bytes(web.memory) == CONTENT
        assert (tally.retries, tally.requests) == (8, 9 + 8)
        again = {request.connection for request in web.server.requests[-9:]}
        assert len(again) < 8  # four of the eight have left; after a second, one by one comes back

    def test_a_store_that_takes_two_at_once(self, web: Served) -> None:
        web.server.most_at_once = 2
        web.server.on(Trickle(MIB // 4, 0.02))
        seen: list[int] = []
        config = TransferConfig(part_size=MIB // 2, connections=8)
        web.read(config, lambda there, connections: seen.append(connections))
        assert bytes(web.memory) == CONTENT
        assert min(seen) <= 4

    def test_it_is_halved_once_for_one_burst(self) -> None:
        decided = pace.Pace.of(64, secure=False)
        counts = [decided.adapt(_reading(at, throttled=40)) for at in (0, 0.5, 1.2, 1.3)]
        assert counts == [32, 32, 16, 16]

    def test_it_never_ends_below_one_and_comes_back_to_what_was_wanted(self) -> None:
        decided = pace.Pace.of(3, secure=False)
        counts = [decided.adapt(_reading(at, throttled=40 if at < 8 else 0)) for at in range(16)]
        assert min(counts) == 1
        assert counts[8:] == [2, 3, 3, 3, 3, 3, 3, 3]

    def test_a_store_that_refuses_now_and_then_is_not_too_busy(self) -> None:
        decided = pace.Pace.of(16, secure=False)
        assert {decided.adapt(_reading(at, throttled=2)) for at in range(16)} == {16}


def _reading(at: float, throttled: int) -> pace.Reading:
    return pace.Reading(rate=1.0, busy=0.1, at=at, requests=40, throttled=throttled)
