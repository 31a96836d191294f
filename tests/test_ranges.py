"""Small reads: by many threads at once, and of a version that is known before."""

from __future__ import annotations

import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from conftest import random_bytes
from faults import IgnoreRange
from served import CONTENT, MIB, PATH, SIZE, Served, serve
from torchwick import ObjectChangedError, TransferConfig
from torchwick.transfer import RangeCache

if TYPE_CHECKING:
    from faulty import FaultyServer

CONFIG = TransferConfig(timeout=5)
READ_AHEAD = 256 << 10


@pytest.fixture(params=["web", "s3"])
def served(request: pytest.FixtureRequest, faulty: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Served:
    return serve(faulty, request.param, monkeypatch)


def _known(served: Served, read_ahead: int | None = None) -> RangeCache:
    return RangeCache(served.store, served.info.uri, CONFIG, info=served.info, read_ahead=read_ahead)


class TestManyThreads:
    def test_what_all_want_is_read_once(self, served: Served) -> None:
        cache, together = _known(served), threading.Barrier(8)

        def read() -> bytes:
            together.wait()
            return bytes(cache.read(MIB, MIB + 1000))

        with ThreadPoolExecutor(8) as pool:
            found = [future.result() for future in [pool.submit(read) for _ in range(8)]]
        assert found == [CONTENT[MIB : MIB + 1000]] * 8
        assert served.asked == [(MIB, MIB + READ_AHEAD)]
        assert (cache.tally.requests, cache.tally.bytes_read) == (1, READ_AHEAD)

    def test_each_gets_its_own(self, served: Served) -> None:
        cache = _known(served, read_ahead=1000)
        starts = range(0, 200_000, 10_000)
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda start: bytes(cache.read(start, start + 100)), [*starts, *starts]))
        assert found == [CONTENT[start : start + 100] for start in [*starts, *starts]]
        assert len(served.asked) == len(starts)


class TestAKnownVersion:
    def test_nothing_is_read_before_it_is_asked_for(self, served: Served) -> None:
        cache = _known(served)
        assert cache.info is served.info
        assert served.asked == []
        assert cache.head == CONTENT[:READ_AHEAD]
        assert cache.head == CONTENT[:READ_AHEAD]
        assert served.asked == [(0, READ_AHEAD)]

    def test_it_is_that_version_that_is_read(self, served: Served) -> None:
        cache = _known(served)
        served.server.put(PATH, random_bytes(SIZE, seed=1))
        with pytest.raises(ObjectChangedError):
            cache.read(10, 20)

    def test_of_no_bytes(self, served: Served) -> None:
        nothing = dataclasses.replace(served.info, size=0)
        cache = RangeCache(served.store, served.info.uri, CONFIG, info=nothing)
        assert bytes(cache.head) == b""
        assert served.asked == []

    def test_of_a_server_without_ranges(self, served: Served) -> None:
        served.server.on(IgnoreRange())
        whole = RangeCache(served.store, served.info.uri, CONFIG)
        cache = RangeCache(served.store, served.info.uri, CONFIG, info=whole.info)
        assert cache.read(MIB, MIB + 10) == CONTENT[MIB : MIB + 10]
        assert cache.head == CONTENT[:READ_AHEAD]


class TestReadAhead:
    def test_of_the_first_read_and_of_others(self, served: Served) -> None:
        cache = RangeCache(served.store, served.info.uri, CONFIG, read_ahead=1000)
        assert cache.head == CONTENT[:1000]
        cache.read(5000, 5001)
        cache.read(MIB, MIB + 3000)
        cache.read(SIZE - 10, SIZE)
        assert served.asked == [(0, 1000), (5000, 6000), (MIB, MIB + 3000), (SIZE - 10, SIZE)]
