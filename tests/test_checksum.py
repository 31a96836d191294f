"""Checksums of pieces come to the checksum of the whole, whatever the pieces and their order."""

from __future__ import annotations

import base64
import hashlib
import itertools
import random
import string
import threading
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import random_bytes
from faults import IgnoreRange
from faulty import FaultyServer
from kept import keep
from torchwick import S3Config, TransferConfig
from torchwick.checkpoint.verification import parse_sha256
from torchwick.loading.whole import complete
from torchwick.store import StoredChecksum, open_store
from torchwick.store.s3_checksum import checksum_of_parts, checksum_of_whole, is_composite
from torchwick.transfer import Digest, Fill, NoWitness, RangeCache, Sums, algorithm, plan
from torchwick.transfer.checksum import Piece, fold
from torchwick.uri import parse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ALGORITHMS = {name: algorithm(name) for name in ("crc64nvme", "crc32c", "crc32")}
each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)

# The same every time, and no failure of a busy machine's.
steady = settings(derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])

# The polynomials, bits reversed: NVM Express base specification (CRC-64), RFC 3720 (CRC-32C), RFC 1952.
POLYNOMIALS = {"crc64nvme": (64, 0x9A6C9329AC4BC9B5), "crc32c": (32, 0x82F63B78), "crc32": (32, 0xEDB88320)}


def by_the_book(name: str, data: bytes) -> int:
    """Bit by bit, as the specifications have it."""
    width, polynomial = POLYNOMIALS[name]
    value = ones = (1 << width) - 1
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
    return value ^ ones


def cut(data: bytes, cuts: list[int]) -> list[tuple[int, int]]:
    """Ranges that make up the data, cut wherever chance has it; some are empty."""
    edges = sorted({0, len(data), *(at % (len(data) + 1) for at in cuts)})
    return list(itertools.pairwise(edges))


class TestAlgorithms:
    @each_algorithm
    @steady
    @given(data=st.binary(max_size=300))
    def test_they_are_what_their_names_say(self, name: str, data: bytes) -> None:
        assert ALGORITHMS[name].update(data, 0) == by_the_book(name, data)

    def test_the_check_values_of_the_catalogues(self) -> None:
        found = {name: each.update(b"123456789", 0) for name, each in ALGORITHMS.items()}
        assert found == {"crc64nvme": 0xAE8B14860A799888, "crc32c": 0xE3069283, "crc32": 0xCBF43926}
        assert zlib.crc32(b"123456789") == found["crc32"]

    @each_algorithm
    @steady
    @given(first=st.binary(max_size=200), second=st.binary(max_size=200))
    def test_they_go_on_and_combine(self, name: str, first: bytes, second: bytes) -> None:
        crc = ALGORITHMS[name]
        both = crc.update(first + second, 0)
        assert crc.update(memoryview(second), crc.update(first, 0)) == both
        assert crc.combine(crc.update(first, 0), crc.update(second, 0), len(second)) == both


class TestFolding:
    @each_algorithm
    @steady
    @given(
        data=st.binary(min_size=1, max_size=500),
        cuts=st.lists(st.integers(0), max_size=12),
        stops=st.lists(st.integers(0), max_size=4),
        chance=st.randoms(use_true_random=False),
    )
    def test_any_pieces_in_any_order(
        self, name: str, data: bytes, cuts: list[int], stops: list[int], chance: random.Random
    ) -> None:
        crc = ALGORITHMS[name]
        stretches = cut(data, stops)
        pieces = [Piece(a, b, crc.update(data[a:b], 0)) for a, b in cut(data, cuts + stops)]
        chance.shuffle(pieces)
        expected = [crc.update(data[a:b], 0) for a, b in stretches]
        assert fold(pieces, [stop for _, stop in stretches], crc) == expected

    @steady
    @given(
        size=st.integers(2, 500),
        cuts=st.lists(st.integers(0), min_size=1, max_size=12),
        lost=st.integers(0),
    )
    def test_a_piece_that_is_missing(self, size: int, cuts: list[int], lost: int) -> None:
        pieces = [Piece(a, b, 0) for a, b in cut(bytes(size), cuts)]
        del pieces[lost % len(pieces)]
        assert fold(pieces, [size], ALGORITHMS["crc32"]) is None

    @pytest.mark.parametrize(
        ("pieces", "stops"),
        [
            ([(0, 4), (2, 8)], [8]),
            ([(0, 4), (0, 4), (4, 8)], [8]),
            ([(0, 8)], [4, 8]),
            ([(0, 4), (5, 8)], [8]),
            ([(1, 8)], [8]),
            ([(0, 9)], [8]),
            ([], [8]),
        ],
        ids=str,
    )
    def test_pieces_that_do_not_fit(self, pieces: list[tuple[int, int]], stops: list[int]) -> None:
        assert fold([Piece(a, b, 0) for a, b in pieces], stops, ALGORITHMS["crc32"]) is None

    def test_nothing_comes_to_nothing(self) -> None:
        assert fold([], [0], ALGORITHMS["crc64nvme"]) == [0]
        assert fold([Piece(0, 0, 0)], [0], ALGORITHMS["crc64nvme"]) == [0]
        assert fold([], [], ALGORITHMS["crc64nvme"]) == []


class TestWitnesses:
    @each_algorithm
    @steady
    @given(
        data=st.binary(min_size=1, max_size=500),
        cuts=st.lists(st.integers(0), max_size=12),
        slice_=st.integers(1, 64),
    )
    def test_sums_of_slices(self, name: str, data: bytes, cuts: list[int], slice_: int) -> None:
        sums, view = Sums(ALGORITHMS[name]), memoryview(data)
        for start, stop in reversed(cut(data, cuts)):
            value = 0
            for at in range(start, stop, slice_):
                value = sums.update(view[at : min(at + slice_, stop)], value)
            sums.arrived(start, stop, value)
        assert sums.folded([len(data)]) == [ALGORITHMS[name].update(data, 0)]

    @steady
    @given(
        data=st.binary(min_size=1, max_size=500),
        cuts=st.lists(st.integers(0), max_size=12),
        chance=st.randoms(use_true_random=False),
    )
    def test_a_digest_of_ranges_in_any_order(
        self, data: bytes, cuts: list[int], chance: random.Random
    ) -> None:
        ranges = cut(data, cuts)
        digest = Digest({a: [memoryview(data)[a:b]] for a, b in ranges})
        chance.shuffle(ranges)
        for start, stop in ranges:
            digest.arrived(start, stop, digest.update(memoryview(data)[start:stop], 0))
        assert digest.hexdigest() == hashlib.sha256(data).hexdigest()

    def test_a_digest_of_ranges_from_many_threads(self) -> None:
        """Whoever finds that another is digesting leaves its range to it: none may be left over."""
        data, step = random_bytes(400_000), 100
        ranges = [(at, at + step) for at in range(0, len(data), step)]
        for seed in range(5):
            random.Random(seed).shuffle(ranges)
            digest = Digest({a: [memoryview(data)[a:b]] for a, b in ranges})
            begin = threading.Barrier(8)

            def arrive(mine: Sequence[tuple[int, int]], digest: Digest, begin: threading.Barrier) -> None:
                begin.wait()
                for start, stop in mine:
                    digest.arrived(start, stop, 0)

            threads = [
                threading.Thread(target=arrive, args=(ranges[at::8], digest, begin)) for at in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert digest.hexdigest() == hashlib.sha256(data).hexdigest()

    def test_a_digest_with_a_gap_is_of_what_lies_before(self) -> None:
        digest = Digest({0: [memoryview(b"one")], 3: [memoryview(b"two")], 6: [memoryview(b"three")]})
        digest.arrived(0, 3, 0)
        digest.arrived(6, 11, 0)
        assert digest.hexdigest() == hashlib.sha256(b"one").hexdigest()

    def test_no_witness(self) -> None:
        nobody = NoWitness()
        assert nobody.update(memoryview(b"data"), 7) == 7
        nobody.arrived(0, 4, 7)


# -- the whole of an object --------------------------------------------------------------------------------

HEAD = 256 << 10
CONTENT = random_bytes(HEAD + 2000)
"""An object of which a cache knows all but the last 2000 bytes."""


@pytest.fixture(scope="module")
def caches() -> Iterator[dict[str, RangeCache]]:
    """What the first reads of one object brought: its head; head and tail, which overlap; its only stream."""
    with FaultyServer() as server:
        found = {}
        for name in ("head", "tail", "stream"):
            uri = parse(server.put(f"models/{name}.pt", CONTENT))
            server.on(IgnoreRange(), path="models/stream.pt")
            found[name] = RangeCache(open_store(uri, S3Config(), 5.0), uri, TransferConfig())
        found["tail"].read(HEAD - 500, len(CONTENT))
        yield found


class TestTheWhole:
    @steady
    @given(
        known=st.sampled_from(["head", "tail", "stream"]),
        cuts=st.lists(st.integers(0, len(CONTENT)), max_size=10),
        wanted=st.lists(st.booleans(), min_size=11, max_size=11),
        stops=st.lists(st.integers(1, len(CONTENT) - 1), max_size=3, unique=True),
    )
    def test_every_byte_is_there_once(
        self, known: str, cuts: list[int], wanted: list[bool], stops: list[int], caches: dict[str, RangeCache]
    ) -> None:
        """Fill what is to be filled: pieces and parts then are all of the object, none across a stop."""
        cache = caches[known]
        ranges = [each for each, is_wanted in zip(cut(CONTENT, cuts), wanted, strict=False) if is_wanted]
        fills = [Fill(a, memoryview(bytearray(b - a))) for a, b in ranges]
        stops = [len(CONTENT)] if known == "stream" else sorted({*stops, len(CONTENT)})
        whole = complete(ranges, cache, len(CONTENT), stops)
        assert whole is not None
        whole, everything = whole.fills(fills, ranged=cache.info.ranged)
        parts = plan(cache.info, everything, 50_000, stops)
        pieces = {part.start: part.buffers for part in parts} | whole.known
        for part in parts:
            at = part.start
            for buffer in part.buffers:
                buffer[:] = CONTENT[at : at + len(buffer)]
                at += len(buffer)
        digest, sums = Digest(pieces), Sums(ALGORITHMS["crc64nvme"])
        for start, buffers in pieces.items():
            data = b"".join(buffers)
            digest.arrived(start, start + len(data), 0)
            sums.arrived(start, start + len(data), sums.update(memoryview(data), 0))
        assert digest.hexdigest() == hashlib.sha256(CONTENT).hexdigest()
        edges = itertools.pairwise([0, *stops])
        assert sums.folded(stops) == [ALGORITHMS["crc64nvme"].update(CONTENT[a:b], 0) for a, b in edges]
        assert all(before == now for before, now in whole.again)
        assert all(bytes(fill.buffer) == CONTENT[fill.start : fill.stop] for fill in fills)

    def test_what_no_one_wants_is_counted(self, caches: dict[str, RangeCache]) -> None:
        whole = complete([], caches["head"], len(CONTENT), [len(CONTENT)])
        assert whole is not None
        assert whole.extra == 2000

    def test_what_was_read_twice_is_to_be_compared(self, caches: dict[str, RangeCache]) -> None:
        assert caches["head"].overlaps() == []
        [(first, second)] = caches["tail"].overlaps()
        assert first == second == CONTENT[HEAD - 500 : HEAD]

    @pytest.mark.parametrize(
        "fills", [[(0, 10), (5, 15)], [(0, len(CONTENT) + 1)], [(3, 9), (3, 9)]], ids=str
    )
    def test_what_cannot_be_completed(
        self, fills: list[tuple[int, int]], caches: dict[str, RangeCache]
    ) -> None:
        assert complete(fills, caches["head"], len(CONTENT), []) is None

    def test_an_unknown_size(self, caches: dict[str, RangeCache]) -> None:
        assert complete([], caches["head"], None, []) is None


# -- what S3 tells -----------------------------------------------------------------------------------------


class TestHeaders:
    @each_algorithm
    @steady
    @given(data=st.binary(max_size=100))
    def test_of_the_whole(self, name: str, data: bytes) -> None:
        headers = keep(name, data, None).headers
        assert not is_composite(headers)
        expected = StoredChecksum(name, ((len(data), by_the_book(name, data)),))
        assert checksum_of_whole(headers, len(data)) == expected

    @each_algorithm
    @steady
    @given(data=st.binary(min_size=1, max_size=100), size=st.integers(1, 40))
    def test_of_the_parts(self, name: str, data: bytes, size: int) -> None:
        kept = keep(name, data, size)
        assert is_composite(kept.headers)
        assert checksum_of_whole(kept.headers, len(data)) is None
        parts = [{"Size": size, f"Checksum{name.upper()}": value} for size, value in kept.parts]
        expected = [
            (min(at + size, len(data)), by_the_book(name, data[at : at + size]))
            for at in range(0, len(data), size)
        ]
        assert checksum_of_parts(parts, len(data)) == StoredChecksum(name, tuple(expected))
        assert checksum_of_parts(parts[:-1], len(data)) is None
        assert checksum_of_parts(parts, len(data) + 1) is None

    @steady
    @given(
        headers=st.dictionaries(
            st.sampled_from([*(f"x-amz-checksum-{name}" for name in ALGORITHMS), "x-amz-checksum-type"]),
            st.text(string.printable, max_size=20)
            | st.binary(max_size=9).map(lambda data: base64.b64encode(data).decode()),
        )
    )
    def test_any_others(self, headers: dict[str, str]) -> None:
        """They are no checksum, or one of its algorithm's length."""
        found = checksum_of_whole(headers, 10)
        if found is not None:
            [(stop, value)] = found.parts
            assert stop == 10
            assert 0 <= value < 1 << POLYNOMIALS[found.algorithm][0]

    @steady
    @given(
        parts=st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "Size": st.integers(0, 10) | st.none(),
                    "ChecksumCRC32": st.sampled_from(["AAAAAA==", "AAAA", "?", ""]),
                },
            )
        )
    )
    def test_any_other_parts(self, parts: list[dict[str, Any]]) -> None:
        found = checksum_of_parts(parts, 10)
        if found is not None:
            assert found.parts[-1][0] == 10
            assert len(found.parts) == len(parts)

    def test_the_best_is_taken(self) -> None:
        headers = {"x-amz-checksum-crc32": "AAAAAA==", "x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}
        found = checksum_of_whole(headers, 1)
        assert found is not None
        assert found.algorithm == "crc64nvme"

    def test_ten_thousand_parts_take_no_time(self) -> None:
        parts = [{"Size": 1, "ChecksumCRC32": "AAAAAA=="}] * 10_000
        found = checksum_of_parts(parts, 10_000)
        assert found is not None
        assert len(found.parts) == 10_000


@steady
@given(st.text(string.hexdigits + "gG \n", max_size=70) | st.text(string.hexdigits, min_size=63, max_size=65))
def test_a_digest_is_64_hexadecimal_digits(text: str) -> None:
    is_one = len(text) == 64 and all(digit in "0123456789abcdefABCDEF" for digit in text)
    if is_one:
        assert parse_sha256(text) == text.lower()
    else:
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            parse_sha256(text)
