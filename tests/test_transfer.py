"""A transfer brings every byte in spite of the network, or says what failed and touches nothing more."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

import pytest

from conftest import random_bytes
from faults import (
    Answer,
    Cut,
    Fault,
    FlipByte,
    Gzip,
    IgnoreRange,
    S3Error,
    SetHeaders,
    ShiftRange,
    Stall,
    Trickle,
    Truncate,
    WrongTotal,
)
from served import CONTENT, MIB, PATH, SIZE, Served, serve
from torchwick import ObjectChangedError, StoreError, TransferConfig, TransferError
from torchwick.transfer import Listed, Tally, Transfer

if TYPE_CHECKING:
    from faulty import FaultyServer

OTHER = random_bytes(SIZE, seed=1)
ONE_PART = TransferConfig(part_size=2 * SIZE, connections=1, timeout=5)
PARTS = TransferConfig(part_size=MIB, connections=2, timeout=5)
PROMPT = 2.0  # seconds; every timeout here is far longer


@pytest.fixture(params=["web", "s3"])
def served(request: pytest.FixtureRequest, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Served:
    return serve(faulty, request.param, monkeypatch)


class TestBytes:
    @pytest.mark.parametrize("config", [ONE_PART, PARTS, TransferConfig()], ids=["one", "parts", "auto"])
    def test_all_of_them(self, served: Served, config: TransferConfig) -> None:
        tally = served.read(config)
        assert bytes(served.memory) == CONTENT
        assert (tally.bytes_read, tally.retries, tally.requests) == (SIZE, 0, len(served.asked))

    def test_each_once(self, served: Served) -> None:
        served.read(PARTS)
        starts = range(0, SIZE, MIB)
        assert sorted(map(str, served.asked)) == sorted(str((at, min(at + MIB, SIZE))) for at in starts)

    def test_fewer_connections_than_parts(self, served: Served) -> None:
        config = TransferConfig(part_size=MIB // 4, connections=2)
        tally = served.read(config)
        assert bytes(served.memory) == CONTENT
        assert (tally.requests, tally.connections) == (17, 2)
        assert served.server.connections <= 2

    def test_fewer_parts_than_connections(self, served: Served) -> None:
        tally = served.read(TransferConfig(part_size=2 * MIB, connections=16))
        assert bytes(served.memory) == CONTENT
        assert (tally.requests, tally.connections) == (3, 3)

    def test_no_parts(self, served: Served) -> None:
        assert Transfer(served.store, Listed([]), PARTS).run() == Tally()

    def test_the_connections_serve_the_next_transfer(self, served: Served) -> None:
        for _ in range(3):
            served.read(PARTS)
        assert served.server.connections == 2


class TestResuming:
    @pytest.mark.parametrize("after", [0, 1, MIB // 2, 5 * MIB // 2])
    def test_after_a_reset(self, served: Served, after: int) -> None:
        served.server.on(Cut(after), nth=1)
        tally = served.read(ONE_PART)
        assert bytes(served.memory) == CONTENT
        assert (tally.retries, tally.requests) == (1, 2)
        [_, again] = served.asked
        assert again is not None
        assert again[1] == SIZE
        assert after - MIB <= again[0] <= after  # a slice is what may be lost

    @pytest.mark.parametrize("after", [0, 1, MIB // 2, 5 * MIB // 2])
    def test_after_an_early_end(self, served: Served, after: int) -> None:
        served.server.on(Truncate(after), nth=1)
        tally = served.read(ONE_PART)
        assert bytes(served.memory) == CONTENT
        assert served.asked == [(0, SIZE), (after, SIZE)]
        assert (tally.retries, tally.bytes_read) == (1, SIZE)

    def test_again_and_again(self, served: Served) -> None:
        served.server.on(Truncate(MIB), nth=range(1, 4))
        assert served.read(ONE_PART).retries == 3
        assert served.asked == [(start * MIB, SIZE) for start in range(4)]
        assert bytes(served.memory) == CONTENT

    @pytest.mark.parametrize("after", [-1, 0, MIB + 5])
    def test_after_silence(self, served: Served, after: int) -> None:
        served = served.patient(0.3)
        served.server.on(Stall(after), nth=1)
        tally = served.read(dataclasses.replace(ONE_PART, timeout=0.3))
        assert bytes(served.memory) == CONTENT
        assert tally.retries == 1

    def test_only_the_broken_part(self, served: Served) -> None:
        served.server.on(Truncate(1000), where=lambda request: request.range == (MIB, 2 * MIB), nth=1)
        assert served.read(PARTS).retries == 1
        assert served.asked.count((MIB + 1000, 2 * MIB)) == 1
        assert len(served.asked) == len(range(0, SIZE, MIB)) + 1
        assert bytes(served.memory) == CONTENT

    def test_a_server_that_closes_after_each_answer(self, served: Served) -> None:
        served.server.on(SetHeaders({"Connection": "close"}))
        assert served.read(PARTS).retries == 0
        assert bytes(served.memory) == CONTENT

    def test_an_answer_that_holds_less_than_was_asked_for(self, served: Served) -> None:
        served.server.on(SetHeaders({"Content-Length": "1000"}), nth=1)
        served.read(ONE_PART)
        assert served.asked == [(0, SIZE), (1000, SIZE)]
        assert bytes(served.memory) == CONTENT


class TestBusyStores:
    @pytest.mark.parametrize(
        ("status", "code"),
        [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable"), (429, "TooManyRequests")],
    )
    def test_it_is_asked_again(self, served: Served, status: int, code: str) -> None:
        served.server.on(S3Error(status, code), nth=1)
        assert served.read(PARTS).retries == 1
        assert bytes(served.memory) == CONTENT

    @pytest.mark.parametrize("status", [502, 503, 504])
    def test_a_gateway_with_a_page_of_its_own(self, served: Served, status: int) -> None:
        page = b"<html><body>Bad gateway<br></body></html>"
        served.server.on(Answer(status, page, {"Content-Type": "text/html"}), nth=1)
        assert served.read(PARTS).retries == 1
        assert bytes(served.memory) == CONTENT

    @pytest.mark.parametrize("served", ["s3"], indirect=True)
    def test_a_timeout_that_s3_calls_a_bad_request(self, served: Served) -> None:
        served.server.on(S3Error(400, "RequestTimeout"), nth=1)
        assert served.read(PARTS).retries == 1
        assert bytes(served.memory) == CONTENT

    def test_it_is_left_alone_for_as_long_as_it_asks(self, served: Served) -> None:
        times: list[float] = []
        served.server.on(S3Error(503, "SlowDown", headers={"Retry-After": "1"}), nth=1)
        served.server.on(lambda: times.append(time.monotonic()))
        served.read(ONE_PART)
        first, second = times
        assert second - first >= 1

    def test_it_is_given_up_in_the_end(self, served: Served) -> None:
        served.server.on(S3Error(503, "SlowDown"))
        with pytest.raises(TransferError, match="tried 2 times") as caught:
            served.read(dataclasses.replace(ONE_PART, max_attempts=2))
        error = caught.value
        assert (error.range, error.attempts, error.uri) == ((0, SIZE), 2, str(served.info.uri))
        assert "fewer connections" in str(error.hint)
        assert isinstance(error.__cause__, StoreError)
        assert served.asked == [(0, SIZE)] * 2


class TestGivingUp:
    def test_the_range_that_is_missing(self, served: Served) -> None:
        served.server.on(Truncate(1000), nth=1)
        served.server.on(Cut(0), nth=range(2, 9))
        with pytest.raises(TransferError) as caught:
            served.read(dataclasses.replace(ONE_PART, max_attempts=3))
        assert (caught.value.range, caught.value.attempts) == ((1000, SIZE), 3)
        assert isinstance(caught.value.__cause__, ConnectionError)

    def test_silence(self, served: Served) -> None:
        served = served.patient(0.3)
        served.server.on(Stall(1000))
        with pytest.raises(TransferError, match="no byte came") as caught:
            served.read(dataclasses.replace(ONE_PART, timeout=0.3, max_attempts=1))
        assert isinstance(caught.value.__cause__, TimeoutError)

    def test_what_is_not_http(self, served: Served) -> None:
        served.server.on(Answer(200, b"", {"Transfer-Encoding": "chunked"}))
        with pytest.raises(StoreError):
            served.read(dataclasses.replace(ONE_PART, max_attempts=1))

    def test_a_refusal_is_not_repeated(self, served: Served) -> None:
        served.server.on(S3Error(403, "AccessDenied"))
        with pytest.raises(PermissionError):
            served.read(ONE_PART)
        assert len(served.asked) <= 2  # S3's own answer may be asked for once more, newly signed


class TestChange:
    def test_overwritten(self, served: Served) -> None:
        served.server.on(lambda: served.server.put(PATH, OTHER), nth=3)
        with pytest.raises(ObjectChangedError):
            served.read(dataclasses.replace(PARTS, connections=1))

    def test_overwritten_while_a_part_is_resumed(self, served: Served) -> None:
        served.server.on(Truncate(MIB), nth=1)
        served.server.on(lambda: served.server.put(PATH, OTHER), nth=2)
        with pytest.raises(ObjectChangedError):
            served.read(ONE_PART)

    def test_deleted(self, served: Served) -> None:
        served.server.on(lambda: served.server.delete(PATH), nth=3)
        with pytest.raises(ObjectChangedError):
            served.read(dataclasses.replace(PARTS, connections=1))

    @pytest.mark.parametrize("headers", [{"ETag": '"other"'}, {"ETag": None}])
    def test_a_server_that_heeds_no_condition(self, served: Served, headers: dict[str, str | None]) -> None:
        served.server.on(SetHeaders(headers), nth=3)
        with pytest.raises(ObjectChangedError):
            served.read(PARTS)

    def test_put_again_with_the_same_bytes_is_no_change(self, served: Served) -> None:
        served.server.on(lambda: served.server.put(PATH, CONTENT), nth=3)
        served.read(PARTS)
        assert bytes(served.memory) == CONTENT


class TestLies:
    @pytest.mark.parametrize(
        "lie",
        [
            ShiftRange(1),
            WrongTotal(SIZE + 1),
            Gzip(),
            SetHeaders({"Content-Range": None}),
            SetHeaders({"Content-Range": "bytes 0-9/*"}),
            SetHeaders({"Content-Range": f"bytes {MIB}-{SIZE - 1}/{SIZE}"}),
            SetHeaders({"Content-Range": "nonsense"}),
            IgnoreRange(),
            IgnoreRange("chunked"),
            IgnoreRange("until-close"),
        ],
        ids=repr,
    )
    def test_are_refused_at_once(self, served: Served, lie: Fault) -> None:
        served.server.on(lie, where=lambda request: request.range == (MIB, 2 * MIB))
        with pytest.raises(StoreError) as caught:
            served.read(dataclasses.replace(PARTS, connections=1))
        assert not isinstance(caught.value, TransferError)
        assert caught.value.uri == str(served.info.uri)
        assert len(served.asked) == 2

    def test_the_whole_object_in_place_of_its_first_part(self, served: Served) -> None:
        served.server.on(IgnoreRange(), where=lambda request: request.range == (0, MIB))
        served.read(PARTS)
        assert bytes(served.memory) == CONTENT

    def test_a_flipped_byte_is_not_noticed_without_checksums(self, served: Served) -> None:
        served.server.on(FlipByte(at=7))  # so that a report that says "verified" would lie
        served.read(PARTS)
        assert bytes(served.memory) != CONTENT


class TestTheEnd:
    """Whatever ends a transfer, nothing of it goes on."""

    def test_an_error_stops_the_other_parts(self, served: Served) -> None:
        served = served.patient(30)
        served.server.on(Stall(1000), where=lambda request: request.range != (3 * MIB, 4 * MIB))
        served.server.on(
            S3Error(403, "AccessDenied"), where=lambda request: request.range == (3 * MIB, 4 * MIB)
        )
        started = time.monotonic()
        with pytest.raises(PermissionError):
            served.read(TransferConfig(part_size=MIB, connections=8, timeout=30))
        assert time.monotonic() - started < PROMPT

    def test_an_error_in_the_callback_stops_every_part(self, served: Served) -> None:
        served = served.patient(30)
        served.server.on(Stall(1000))

        def give_up(done: int, connections: int) -> None:
            raise LookupError(done, connections)

        started = time.monotonic()
        with pytest.raises(LookupError):
            served.read(TransferConfig(part_size=MIB, connections=8, timeout=30), give_up)
        assert time.monotonic() - started < PROMPT

    def test_an_error_ends_a_wait_between_attempts(self, served: Served) -> None:
        served.server.on(
            S3Error(503, "SlowDown", headers={"Retry-After": "60"}),
            where=lambda request: request.range == (0, MIB),
        )
        served.server.on(S3Error(403, "AccessDenied"), where=lambda request: request.range == (MIB, 2 * MIB))
        started = time.monotonic()
        with pytest.raises(PermissionError):
            served.read(PARTS)
        assert time.monotonic() - started < PROMPT

    def test_the_memory_is_the_callers_again(self, served: Served) -> None:
        served.server.on(Trickle(size=1000, every=0.002), where=lambda request: request.range != (0, MIB))
        served.server.on(S3Error(403, "AccessDenied"), where=lambda request: request.range == (0, MIB))
        with pytest.raises(PermissionError):
            served.read(TransferConfig(part_size=MIB, connections=8))
        assert not [each for each in threading.enumerate() if each.name.startswith("torchwick-")]
        pattern = b"\xaa" * SIZE
        served.memory[:] = pattern
        deadline = time.monotonic() + 0.2  # a hundred more pieces, were anyone there to read them
        while time.monotonic() < deadline:
            assert served.memory == pattern

    def test_the_next_transfer_is_not_disturbed(self, served: Served) -> None:
        served.server.on(S3Error(403, "AccessDenied"), nth=1)
        with pytest.raises(PermissionError):
            served.read(dataclasses.replace(PARTS, connections=4))
        served.read(dataclasses.replace(PARTS, connections=4))
        assert bytes(served.memory) == CONTENT


class TestProgress:
    def test_it_grows_and_never_exceeds_the_size(self, served: Served) -> None:
        seen: list[int] = []
        served.server.on(Trickle(size=MIB // 16, every=0.01))
        served.server.on(Cut(MIB // 2), nth=1)
        served.read(PARTS, lambda done, connections: seen.append(done))
        assert seen == sorted(seen)
        assert seen[-1] <= SIZE

    def test_it_tells_how_many_connections_are_at_work(self, served: Served) -> None:
        seen: list[int] = []
        served.server.on(Trickle(size=MIB // 16, every=0.01))
        served.read(PARTS, lambda done, connections: seen.append(connections))
        assert set(seen) <= {1, 2}
        assert seen[0] == 2
