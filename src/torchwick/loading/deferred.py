"""Let torch.load lay out the storages, and only fill them.

torch.load gets a file that answers its small reads (directory, headers, pickle) from bytes already fetched,
and that only *notes* a read into a storage's memory. So torch.load builds the real object, with its real safe
unpickler, over memory not yet touched. The notes are the plan of the transfer: exact offsets, exact memory.

This is exact only where nothing looks at values while the object is built; `defer_zip` and `defer_legacy`
return None wherever that, or anything else they rely on, is not certain.
"""

from __future__ import annotations

import bisect
import io
import logging
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, cast

import torch

from torchwick.formats.blind import values_unseen
from torchwick.formats.catalog import Landmark
from torchwick.formats.dtypes import element_size
from torchwick.formats.pickles import PickleFacts
from torchwick.formats.torch_catalog import MisplacedError
from torchwick.formats.torch_legacy import COUNT_BYTES, LegacyFile, StoragePlace
from torchwick.formats.torch_zip import LOCAL_BYTES, Layout, Record, header_agrees
from torchwick.loading.casting import recast
from torchwick.loading.devices import Placement, is_faking, on_host, places
from torchwick.loading.refusals import check_safe, explain
from torchwick.loading.source import Source
from torchwick.loading.streamed import Destinations, Spans, redirect, stream
from torchwick.transfer import Fill, RangeCache

__all__ = ["defer_legacy", "defer_zip", "storages_agree"]

_MOST_DESCRIPTOR = 24  # bytes between the data of a record and the next header
_log = logging.getLogger("torchwick")


class DeferredFile(io.RawIOBase):
    """A seekable file that answers reads from what is known, and notes reads of what may wait.

    Args:
        cache: the object's bytes; a read that is neither known nor may wait is fetched at once.
        size: bytes of the object.
        assumed: bytes that stand in for unread ones, by offset: derived headers.
        may_wait: half-open ranges whose reads are only noted.
    """

    def __init__(
        self, cache: RangeCache, size: int, assumed: dict[int, bytes], may_wait: Iterable[tuple[int, int]]
    ) -> None:
        self._cache = cache
        self._size = size
        self._assumed = assumed
        self._may_wait = sorted(may_wait)
        self._position = 0
        self.noted: list[Fill] = []

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def readinto(self, destination: Any) -> int:
        start = self._position
        count = max(0, min(len(destination), self._size - start))
        self._position += count
        known = self._known(start, start + count)
        if known is not None:
            destination[:count] = known
        elif self._waits(start, start + count):
            self.noted.append(Fill(start, memoryview(destination).cast("B")[:count]))
        else:
            destination[:count] = self._cache.read(start, start + count)
        return count

    def read(self, count: int | None = -1) -> bytes:
        """Return bytes, which must be the real ones: never noted."""
        start = self._position
        left = max(0, self._size - start)
        wanted = left if count is None or count < 0 else min(count, left)
        self._position += wanted
        known = self._known(start, start + wanted)
        return bytes(self._cache.read(start, start + wanted) if known is None else known)

    def readline(self, size: int | None = -1) -> bytes:  # noqa: ARG002
        """Return bytes up to the next line feed; pickles use it for the names of globals."""
        line = bytearray()
        while not line.endswith(b"\n") and (byte := self.read(1)):
            line += byte
        return bytes(line)

    def _known(self, start: int, stop: int) -> memoryview | bytes | None:
        real = self._cache.find(start, stop)
        if real is not None:
            return real
        stand_in = self._assumed.get(start)
        return stand_in[: stop - start] if stand_in is not None and len(stand_in) >= stop - start else None

    def _waits(self, start: int, stop: int) -> bool:
        at = bisect.bisect_right(self._may_wait, (start, sys.maxsize)) - 1
        return at >= 0 and stop <= self._may_wait[at][1] and start < stop


@dataclass
class _Storages:
    """The storages torch.load makes, kept alive until they are filled: a noted view does not own them.

    Attributes:
        where: devices that they are to be on, by the tags they were saved under.
        made: those on the CPU, which are filled, or only stand for others.
        moved: those that torch.load was given for them, by their addresses.
        device_of: where each is to be, by its address.
    """

    where: Mapping[str, torch.device]
    made: list[torch.UntypedStorage] = field(default_factory=list, repr=False)  # which prints every byte
    moved: dict[int, torch.UntypedStorage] = field(default_factory=dict, repr=False)
    device_of: dict[int, torch.device] = field(default_factory=dict)

    def keep(self, storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        """Take a storage, as a ``map_location`` does, and return the one that tensors are to have."""
        self.made.append(storage)
        device = self.device_of[storage.data_ptr()] = self.where[location]
        if on_host(device):
            return storage
        elsewhere = torch.empty(storage.nbytes(), dtype=torch.uint8, device=device).untyped_storage()
        if storage.nbytes():  # those without bytes have no address of their own
            self.moved[storage.data_ptr()] = elsewhere
        return elsewhere

    def stay(self, storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
        """Take a storage, and leave its tensors to it for now."""
        self.made.append(storage)
        self.device_of[storage.data_ptr()] = self.where[location]
        return storage


@dataclass(frozen=True)
class _Check:
    """Bytes that lie between the storages, and what must be true of them."""

    fill: Fill
    holds: Callable[[memoryview], bool]


@dataclass(frozen=True)
class Loaded:
    """What a deferred load returns, apart from None: the object itself may be None."""

    value: Any = field(repr=False)


def defer_zip(
    source: Source, layout: Layout, facts: PickleFacts, to: Placement, *, weights_only: bool
) -> Loaded | None:
    """Load a zip checkpoint by filling, or return None where that is not certain to be exact.

    Raises:
        FormatError: torch's loader cannot read it.
        StoreError: the bytes cannot be read.
    """
    records = {name: r for name, r in layout.archive.records.items() if name.startswith("data/")}
    if not (_is_blind(facts) and _is_native(source, layout) and storages_agree(facts, records)):
        return None
    if not to.is_meta and _places(source, facts, to, weights_only=weights_only) is None:
        return None
    checks = _header_checks(layout, records.values())
    known = [(check, source.cache.find(check.fill.start, check.fill.stop)) for check in checks]
    if not all(check.holds(header) for check, header in known if header is not None):
        return None
    file = DeferredFile(
        source.cache,
        _size(source),
        {record.header: layout.local_header(record) for record in layout.archive.records.values()},
        ((layout.starts[name], layout.starts[name] + record.size) for name, record in records.items()),
    )
    unread = [check for check, header in known if header is None]
    return _load(source, file, facts, unread, to, weights_only=weights_only)


def defer_legacy(source: Source, legacy: LegacyFile, to: Placement, *, weights_only: bool) -> Loaded | None:
    """Load a legacy checkpoint by filling, or return None where that is not certain to be exact.

    Raises:
        FormatError: torch's loader cannot read it.
        StoreError: the bytes cannot be read.
    """
    facts, storages = legacy.facts, legacy.storages
    if storages is None or any(place.fact.is_view for place in storages):
        return None
    if not _is_blind(facts) or sys.byteorder != "little":
        return None
    where = _places(source, facts, to, weights_only=weights_only)
    if where is None or not all(map(on_host, where.values())):  # torch reads into its own memory first
        return None
    counts = {place.start: struct.pack("<q", place.fact.numel) for place in storages}
    checks = [_count_check(place, counts[place.start]) for place in storages]
    file = DeferredFile(
        source.cache,
        _size(source),
        counts,
        ((place.data, place.data + place.size) for place in storages),
    )
    return _load(source, file, facts, checks, to, weights_only=weights_only)


def _load(
    source: Source,
    file: DeferredFile,
    facts: PickleFacts,
    checks: list[_Check],
    to: Placement,
    *,
    weights_only: bool,
) -> Loaded | None:
    if to.is_meta or is_faking():  # no bytes are read
        value = _laid_out(source, file, facts, to.map_location, weights_only=weights_only)
        if to.dtype is not None:
            recast(value, to.dtype)
        return Loaded(value)
    storages = _Storages(_places(source, facts, to, weights_only=weights_only) or {})
    keep = storages.keep if to.dtype is None else storages.stay
    value = _laid_out(source, file, facts, keep, weights_only=weights_only)
    spans = Spans(storages.made)
    if not all(map(spans.find, (fill.buffer for fill in file.noted))):
        _log.debug("%s: torch read into memory of its own; taking the careful path", source.uri)
        return None
    between = checks if file.noted else []
    destinations = Destinations({}, storages.moved)
    if to.dtype is not None:
        destinations = redirect(value, to.dtype, storages.device_of)
    if not (destinations.cast or destinations.moved):
        source.fill([*file.noted, *(check.fill for check in between)])
        agreed = all(check.holds(check.fill.buffer) for check in between)
    else:
        agreed = _stream(source, file.noted, spans, destinations, between)
    if not agreed:
        _log.warning("%s: its records lie where no known writer puts them; reading it again", source.uri)
        return None
    return Loaded(value)


def _laid_out(
    source: Source, file: DeferredFile, facts: PickleFacts, map_location: Any, *, weights_only: bool
) -> Any:
    with explain(source.uri, weights_only=weights_only, facts=facts):
        return torch.load(
            cast(IO[bytes], file), map_location=map_location, weights_only=weights_only, mmap=False
        )


def _stream(
    source: Source, fills: Sequence[Fill], spans: Spans, to: Destinations, checks: Iterable[_Check]
) -> bool:
    """Stream, and tell whether what lies between the storages is what belongs there."""
    landmarks = [Landmark(check.fill.start, check.fill.stop, check.holds) for check in checks]
    try:
        stream(source, fills, spans, to, landmarks)
    except MisplacedError:
        return False
    return True


def _size(source: Source) -> int:
    size = source.info.size
    if size is None:
        raise AssertionError("a deferred load needs the object's size")
    return size


def _is_blind(facts: PickleFacts) -> bool:
    return facts.followed and all(map(values_unseen, facts.globals))


def _places(
    source: Source, facts: PickleFacts, to: Placement, *, weights_only: bool
) -> dict[str, torch.device] | None:
    """Return where the storages will be; a pickle that is refused is refused before its devices are."""
    try:
        return places(to.map_location, {fact.location for fact in facts.storages.values()})
    except RuntimeError:
        if weights_only:
            check_safe(facts, source.uri)
        raise


def _is_native(source: Source, layout: Layout) -> bool:
    """Whether the storages need no swapping of bytes, which torch does while unpickling."""
    record = layout.archive.records.get("byteorder")
    if record is None:  # written before torch 2.1: torch takes it for little-endian unless told otherwise
        told = torch.serialization.get_default_load_endianness()
        little = torch.serialization.LoadEndianness.LITTLE
        return sys.byteorder == "little" and told in (None, little)
    start = layout.starts["byteorder"]
    if record.size != len(sys.byteorder):
        return False
    return bytes(source.cache.read(start, start + record.size)) == sys.byteorder.encode()


def storages_agree(facts: PickleFacts, records: Mapping[str, Record]) -> bool:
    """Whether the pickle and the directory say the same of every storage."""
    for key, fact in facts.storages.items():
        record, width = records.get(f"data/{key}"), element_size(fact.type_name)
        if record is None or width is None or record.size != fact.numel * width:
            return False
    return True


def _header_checks(layout: Layout, records: Iterable[Record]) -> list[_Check]:
    """Checks of the real local headers, each read with all that lies between two records' data.

    So that neighbouring records, with what is between them, are read by one request.
    """
    checks, end = list[_Check](), 0
    for record in records:
        if record.size == 0:
            continue
        begin = end if 0 <= record.header - end <= _MOST_DESCRIPTOR else record.header
        start = layout.starts[record.name]
        checks.append(
            _Check(Fill(begin, memoryview(bytearray(start - begin))), _agreement(record, begin, start))
        )
        end = start + record.size
    return checks


def _agreement(record: Record, begin: int, start: int) -> Callable[[memoryview], bool]:
    at = record.header - begin
    return lambda between: header_agrees(between[at : at + LOCAL_BYTES], record, start)


def _count_check(place: StoragePlace, expected: bytes) -> _Check:
    fill = Fill(place.start, memoryview(bytearray(COUNT_BYTES)))
    return _Check(fill, lambda count: bytes(count) == expected)
