"""What is written, cut into parts: the same bytes, in the sizes that S3 takes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import random_bytes
from torchwick.transfer.cutting import LARGEST_OBJECT, Cut, Cutter, parts_of

MIB = 1 << 20
CONTENT = random_bytes(300_000)


@settings(deadline=None)  # the machine may be busy
@given(
    part_size=st.integers(1, 120_000),
    sizes=st.lists(st.one_of(st.integers(0, 300), st.integers(16_000, 60_000)), max_size=20),
)
def test_the_parts_are_what_was_written(part_size: int, sizes: list[int]) -> None:
    cutter, cuts, at = Cutter(part_size), list[Cut](), 0
    for size in sizes:
        cuts += cutter.add(CONTENT[at % 1000 : at % 1000 + size])
        at += size
        assert cutter.written == at
    rest = cutter.rest()
    cuts += [] if rest is None else [rest]
    written = b"".join(
        CONTENT[a % 1000 : a % 1000 + size] for a, size in zip(_starts(sizes), sizes, strict=True)
    )
    assert b"".join(view for cut in cuts for view in cut.views) == written
    assert [cut.number for cut in cuts] == list(range(1, len(cuts) + 1))
    assert all(cut.size == part_size == sum(map(len, cut.views)) for cut in cuts[:-1])
    assert all(cut.start == (cut.number - 1) * part_size for cut in cuts)


def _starts(sizes: list[int]) -> list[int]:
    return [sum(sizes[:index]) for index in range(len(sizes))]


def test_large_writes_are_not_copied() -> None:
    memory = bytearray(CONTENT)
    [cut] = Cutter(200_000).add(memoryview(memory))
    memory[0] ^= 0xFF
    assert cut.views[0][0] == memory[0]


def test_small_writes_are_one_view() -> None:
    cutter = Cutter(1 << 20)
    assert all(not list(cutter.add(b"tiny")) for _ in range(1000))
    rest = cutter.rest()
    assert rest is not None
    assert [bytes(view) for view in rest.views] == [b"tiny" * 1000]


@settings(deadline=None)
@given(size=st.integers(0, LARGEST_OBJECT), wanted=st.one_of(st.just("auto"), st.integers(1, 1 << 40)))
def test_parts_keep_within_the_limits_of_s3(size: int, wanted: int | str) -> None:
    part_size = parts_of(size, wanted)
    assert 5 * MIB <= part_size <= 5 << 30
    assert math.ceil(size / part_size) <= 10_000


@pytest.mark.parametrize(("size", "part_size"), [(0, 16), (2200, 16), (160_000, 16), (160_001, 17)])
def test_parts_have_16_mib_unless_they_would_be_too_many(size: int, part_size: int) -> None:
    assert parts_of(size * MIB) == part_size * MIB
