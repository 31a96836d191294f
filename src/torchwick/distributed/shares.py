"""Who reads what, and in which order all get it: pure functions from groups of bytes to units of an exchange.

A rank's share is one stretch of the checkpoint's bytes, so that it is read in few and large requests. A unit
is what one broadcast carries: one large piece of a tensor, or many small ones packed together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torchwick.checkpoint.layout import Group

__all__ = ["Unit", "in_rounds", "offsets", "owners_of", "split", "unit_size", "units"]

Range = tuple[int, int]

_SMALLEST, _LARGEST = 1 << 20, 16 << 20  # bytes of a unit; the largest is a part as large as they come
_ROUNDS = 8  # units that each rank has at least, so that reading and exchanging overlap
_SCRATCH = 16  # units of the largest size that fit into the memory limit, those read ahead included
_SMALL = 1 << 20  # bytes of what is packed with others
_ALIGNMENT = 16  # bytes: the widest element torch has, complex128


@dataclass(frozen=True, eq=False)
class Unit:
    """What one broadcast carries.

    Attributes:
        owner: the rank that reads it, within the group.
        keys: the fragments in it, in the order in which they are read.
        starts: where each begins, in bytes from the first.
        nbytes: bytes that go over the wire.
    """

    owner: int
    keys: tuple[str, ...]
    starts: tuple[int, ...]
    nbytes: int


def unit_size(total: int, ranks: int, memory: int) -> int:
    """Return the bytes of a unit, for a load of `total` bytes within so much memory beside the tensors.

    Example:
        >>> unit_size(64 << 20, 4, 1 << 30) >> 20, unit_size(64 << 30, 4, 1 << 30) >> 20
        (2, 16)
        >>> unit_size(64 << 30, 4, 64 << 20) >> 20
        4
    """
    wanted = min(max(total // (ranks * _ROUNDS), _SMALLEST), _LARGEST)
    return max(1, min(wanted, memory // _SCRATCH))


def split(groups: Sequence[Group], ranks: int) -> list[list[Group]]:
    """Return each rank's share: neighbouring groups, of nearly as many bytes as any other's.

    Args:
        groups: in the order of their bytes.
        ranks: how many there are.

    Example:
        >>> from torchwick.checkpoint.layout import Region
        >>> four = [Group((name,), (Region("", at, at + 10),)) for at, name in zip((0, 10, 20, 30), "abcd")]
        >>> [[group.names[0] for group in share] for share in split(four, 2)]
        [['a', 'b'], ['c', 'd']]
    """
    shares: list[list[Group]] = [[] for _ in range(ranks)]
    total, at = sum(group.nbytes for group in groups), 0
    for group in groups:
        middle = at + group.nbytes / 2
        shares[min(ranks - 1, int(middle * ranks / total))].append(group)
        at += group.nbytes
    return shares


def owners_of(ranges: Sequence[Range], name: str, shares: Sequence[Sequence[Group]]) -> list[int]:
    """Return who reads what no tensor wants of an object: whoever reads what follows it, as one request.

    Args:
        ranges: of the object, in order.
        name: the object's.
        shares: what each rank reads.
    """
    ends = [
        (region.stop, rank)
        for rank, share in enumerate(shares)
        for group in share
        for region in group.regions
        if region.object == name
    ]
    owners, at = list[int](), 0
    for start, _ in ranges:
        while at < len(ends) - 1 and ends[at][0] <= start:
            at += 1
        owners.append(ends[at][1] if ends else 0)
    return owners


def units(share: Sequence[Group], sizes: Mapping[str, int], owner: int, most: int) -> list[Unit]:
    """Return the units of a share, in the order in which they become complete.

    What is small is packed, across what is large: of a transformer, each norm lies between two matrices.

    Args:
        share: what the rank reads, in order.
        sizes: bytes of each fragment on the wire.
        owner: the rank.
        most: bytes of a packed unit.

    Example:
        >>> share = [Group((name,), ()) for name in "abc"]
        >>> [unit.keys for unit in units(share, {"a": 100, "b": 1 << 22, "c": 100}, 0, 1 << 22)]
        [('b',), ('a', 'c')]
    """
    done = list[Unit]()
    pack, held = list[str](), 0
    place = {key: at for at, key in enumerate(itertools.chain.from_iterable(g.names for g in share))}
    for key in place:
        size = sizes[key]
        if size >= min(_SMALL, most):
            done.append(Unit(owner, (key,), (0,), size))
            continue
        if pack and held + size > most:
            done.append(_packed(owner, pack, sizes))
            pack, held = [], 0
        pack.append(key)
        held += size
    if pack:
        done.append(_packed(owner, pack, sizes))
    return sorted(done, key=lambda unit: place[unit.keys[-1]])  # a pack is full only when the next one begins


def _packed(owner: int, keys: Sequence[str], sizes: Mapping[str, int]) -> Unit:
    *starts, end = offsets([sizes[key] for key in keys])
    return Unit(owner, tuple(keys), tuple(starts), end)


def offsets(sizes: Sequence[int]) -> list[int]:
    """Return where things of these sizes begin behind one another, aligned, and where the last one ends.

    Example:
        >>> offsets([3, 20, 5])
        [0, 16, 48, 53]
    """
    starts, at, end = list[int](), 0, 0
    for size in sizes:
        starts.append(at)
        end = at + size
        at = -(-end // _ALIGNMENT) * _ALIGNMENT
    return [*starts, end]


def in_rounds(of_ranks: Sequence[Sequence[Unit]]) -> Iterator[Unit]:
    """Yield the units in the order in which all ranks exchange them: one of each rank, and again.

    Example:
        >>> a, b, c = (Unit(rank, (key,), (0,), 1) for rank, key in ((0, "a"), (0, "b"), (1, "c")))
        >>> [unit.keys[0] for unit in in_rounds([[a, b], [c]])]
        ['a', 'c', 'b']
    """
    for round_ in itertools.zip_longest(*of_ranks):
        yield from (unit for unit in round_ if unit is not None)
