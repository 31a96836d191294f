"""A plan brings exactly the bytes that are wanted, each to its place, in requests that are not too large."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import random_bytes
from torchwick.store import ObjectInfo
from torchwick.transfer import Fill, Part, plan
from torchwick.transfer.plan import MIB, choose_part_size
from torchwick.uri import parse

URI = parse("s3://models/new.pt")
SIZE = 1000
CONTENT = random_bytes(SIZE)
RANGED = ObjectInfo(URI, SIZE)
STREAMED = ObjectInfo(URI, SIZE, ranged=False)


@dataclass
class Wanted:
    """Ranges of an object, each with memory of its own, in any order."""

    fills: list[Fill]

    @property
    def spans(self) -> list[tuple[int, int]]:
        return sorted((fill.start, fill.stop) for fill in self.fills if len(fill.buffer))

    def assert_filled(self) -> None:
        for fill in self.fills:
            assert bytes(fill.buffer) == CONTENT[fill.start : fill.stop]


@st.composite
def wanted(draw: st.DrawFn) -> Wanted:
    """Disjoint ranges: some touch, some are empty, some leave holes."""
    cuts = sorted(draw(st.lists(st.integers(0, SIZE), min_size=2, max_size=20)))
    spans = [span for span in pairwise(cuts) if draw(st.booleans())]
    fills = [Fill(start, memoryview(bytearray(stop - start))) for start, stop in spans]
    return Wanted(draw(st.permutations(fills)))


def _read(parts: list[Part]) -> None:
    """Bring the bytes, as a transfer does."""
    for part in parts:
        position = part.start
        for buffer in part.buffers:
            buffer[:] = CONTENT[position : position + len(buffer)]
            position += len(buffer)
        assert (position, len(part)) == (part.stop, part.stop - part.start)


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


part_sizes = st.integers(1, SIZE + 10)


@given(wanted(), part_sizes)
def test_every_byte_reaches_its_place(want: Wanted, part_size: int) -> None:
    _read(plan(RANGED, want.fills, part_size))
    want.assert_filled()


@given(wanted(), part_sizes)
def test_nothing_is_asked_twice_or_in_vain(want: Wanted, part_size: int) -> None:
    spans = [(part.start, part.stop) for part in plan(RANGED, want.fills, part_size)]
    assert spans == sorted(spans)
    assert _joined(spans) == _joined(want.spans)


@given(wanted(), part_sizes)
def test_no_part_is_too_large_or_needlessly_small(want: Wanted, part_size: int) -> None:
    parts = plan(RANGED, want.fills, part_size)
    assert all(0 < len(part) <= part_size for part in parts)
    fewest = sum(-((start - stop) // part_size) for start, stop in _joined(want.spans))
    assert len(parts) == fewest


@given(wanted(), part_sizes)
def test_without_ranges_it_is_one_stream_from_the_start(want: Wanted, part_size: int) -> None:
    parts = plan(STREAMED, want.fills, part_size)
    assert [part.start for part in parts] == [0] * bool(want.spans)
    _read(parts)
    want.assert_filled()


@given(wanted())
def test_a_small_load_needs_no_splitting(want: Wanted) -> None:
    assert [(part.start, part.stop) for part in plan(RANGED, want.fills)] == _joined(want.spans)


@pytest.mark.parametrize("info", [RANGED, STREAMED])
def test_nothing_wanted_is_nothing_asked(info: ObjectInfo) -> None:
    assert plan(info, []) == []
    assert plan(info, [Fill(7, memoryview(b""))]) == []


def test_parts_are_of_the_object_they_were_planned_for() -> None:
    assert plan(RANGED, [Fill(0, memoryview(bytearray(1)))])[0].object is RANGED


@given(st.integers(0, 1 << 50))
def test_the_chosen_part_size(total: int) -> None:
    chosen = choose_part_size(total)
    assert 4 * MIB <= chosen <= 16 * MIB
    assert chosen == min(16 * MIB, max(4 * MIB, total // 32))
