"""Reads the directory of torch's zip format, and derives from it where each record's bytes are.

The directory at the end of a zip file (PKWARE APPNOTE 6.3, section 4.3) says where each record's *local
header* is, not where its data begin: that depends on the local header's own length, and the local headers
lie between the tensors. Reading each would cost a request a tensor. They can be derived: the data of a record
end where the next header begins, less a data descriptor. What is derived is a guess until it is checked
against the real headers, which flow past when neighbouring records are read together.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from torchwick.errors import FormatError
from torchwick.formats.dtypes import element_size
from torchwick.formats.pickles import PickleFacts

__all__ = [
    "LOCAL_BYTES",
    "Archive",
    "Layout",
    "Record",
    "check_storages",
    "check_unpacks",
    "derive_layout",
    "derive_starts",
    "header_agrees",
    "read_archive",
]

Read = Callable[[int, int], memoryview]

_END = b"PK\x05\x06"
_END64_LOCATOR = b"PK\x06\x07"
_END64 = b"PK\x06\x06"
_ENTRY = b"PK\x01\x02"
_LOCAL = b"PK\x03\x04"
_END_BYTES, _LOCATOR_BYTES, _END64_BYTES, _ENTRY_BYTES, LOCAL_BYTES = 22, 20, 56, 46, 30
TAIL = 256 << 10  # the end record with the longest comment (64 KiB), and most directories whole
_WIDE = 0xFFFFFFFF
_ZIP64_VERSION = 45  # "version needed to extract" of an entry with 64-bit sizes
_HAS_DESCRIPTOR = 1 << 3  # general purpose flag: a data descriptor follows the data
_IS_FOLDER = 1 << 4  # MS-DOS's attribute, which torch's reader heeds whoever wrote it
_MOST_DEFLATED = 1032  # bytes from one, at deflate's best (zlib.net/zlib_tech.html)
_ALIGNMENT = 64  # torch.save's default since 1.6: caffe2/serialize/inline_container.h, kFieldAlignment


@dataclass(frozen=True)
class Record:
    """One file in the archive, as the directory describes it.

    Attributes:
        name: its name below the archive's root, in lower case since torch's reader ignores case:
            ``"data.pkl"``, ``"data/0"``.
        header: offset of its local header.
        name_bytes: its whole name, undecoded.
        size: bytes of the data, uncompressed.
        packed: bytes of the data as they lie in the file.
        stored: whether the data are neither compressed nor encrypted.
        described: whether a data descriptor follows the data.
        wide: whether it was written with 64-bit sizes.
        crc32: of the data, uncompressed; 0 as well where torch.save was told to compute none.
    """

    name: str
    header: int
    name_bytes: bytes
    size: int
    packed: int
    stored: bool
    described: bool
    wide: bool
    crc32: int


@dataclass(frozen=True)
class Archive:
    """The directory: records by name, in the order of the file, and the offset where the directory begins."""

    records: dict[str, Record]
    directory: int

    @property
    def unpacked(self) -> int:
        """Bytes that its compressed records claim to unpack to."""
        return sum(record.size for record in self.records.values() if not record.stored)


@dataclass(frozen=True)
class Layout:
    """Where the data of each record begin, derived: `starts` by the record's name."""

    archive: Archive
    starts: dict[str, int]

    def local_header(self, record: Record) -> bytes:
        """Return the local header as it must be for the derived layout to hold, its padding zero."""
        padding = self.starts[record.name] - record.header - LOCAL_BYTES - len(record.name_bytes)
        size = min(record.size, _WIDE)
        fixed = struct.pack("<4s14xIIHH", _LOCAL, size, size, len(record.name_bytes), padding)
        return fixed + record.name_bytes + bytes(padding)


def header_agrees(header: memoryview, record: Record, start: int) -> bool:
    """Whether a real local header (its first 30 bytes or more) puts the record's data at `start`."""
    signature, name_length, extra_length = struct.unpack_from("<4s22xHH", header)
    data_start: int = record.header + LOCAL_BYTES + name_length + extra_length
    return bool(signature == _LOCAL) and data_start == start


def read_archive(read: Read, size: int, uri: object) -> Archive:
    """Read the directory.

    Args:
        read: returns the bytes of a half-open range.
        size: the object's bytes.
        uri: the object, for messages.

    Raises:
        FormatError: there is none, as in a file that was cut short, or it contradicts itself.
    """
    count, directory, length = _find_directory(read, size, uri)
    if directory + length > size or count * _ENTRY_BYTES > length:
        raise _corrupt(
            uri, f"its directory claims {count} records in bytes {directory} to {directory + length}"
        )
    records = _parse_directory(read(directory, directory + length), count, uri)
    # As torch's reader has it: the root is what the first record's name begins with.
    root = records[0].name.partition("/")[0] + "/" if records else ""
    below = {r.name.removeprefix(root).lower(): r for r in sorted(records, key=lambda r: r.header)}
    if len(below) != len(records):
        # Which of the two torch would take depends on its search; a scanner may have seen the other one.
        raise _corrupt(uri, "two of its records have one name")
    _check_apart(list(below.values()), directory, uri)
    return Archive({name: replace(record, name=name) for name, record in below.items()}, directory)


def _corrupt(uri: object, message: str) -> FormatError:
    hint = "It is corrupt or was cut short: upload it again, whole."
    return FormatError(f"the zip archive cannot be read: {message}", uri=uri, hint=hint)


def _find_directory(read: Read, size: int, uri: object) -> tuple[int, int, int]:
    """Return the directory's count of records, offset, and bytes, from the end of the file."""
    tail_at = max(0, size - TAIL)
    tail = bytes(read(tail_at, size))
    end = tail.rfind(_END, 0, len(tail) - _END_BYTES + len(_END))
    if end < 0:
        raise _corrupt(uri, f"its directory is missing, which belongs at the end, byte {size}")
    count, length, directory = struct.unpack_from("<HII", tail, end + 10)
    locator = end - _LOCATOR_BYTES
    if locator < 0 or not tail.startswith(_END64_LOCATOR, locator):
        return count, directory, length
    (end64,) = struct.unpack_from("<Q", tail, locator + 8)
    if end64 + _END64_BYTES > size:
        raise _corrupt(uri, f"its zip64 record is said to be at byte {end64} of {size}")
    signature, *wide = struct.unpack("<4s28xQQQ", read(end64, end64 + _END64_BYTES))
    if signature != _END64:
        raise _corrupt(uri, f"no zip64 record is at byte {end64}")
    narrow = [(count, 0xFFFF), (length, _WIDE), (directory, _WIDE)]
    if any(said not in (value, most) for value, (said, most) in zip(wide, narrow, strict=True)):
        # Readers differ in which of the two they believe; a scanner may have seen the other directory.
        raise _corrupt(uri, "its end record and its zip64 record name different directories")
    return wide[0], wide[2], wide[1]


def _parse_directory(data: memoryview, count: int, uri: object) -> list[Record]:
    records, position = list[Record](), 0
    for _ in range(count):
        if position + _ENTRY_BYTES > len(data) or data[position : position + 4] != _ENTRY:
            raise _corrupt(uri, f"entry {len(records)} of its directory is damaged")
        record, position = _parse_entry(data, position, uri)
        records.append(record)
    return records


def _check_size(record: Record, method: int, attributes: int, uri: object) -> None:
    """Refuse a record for which torch would make memory, and leave it as it finds it."""
    if record.size and (attributes & _IS_FOLDER or record.name.endswith("/")):
        raise _corrupt(
            uri, f"record {_shown(record)} is said to be a folder, and to have {record.size} bytes"
        )
    if record.size > (_MOST_DEFLATED if method else 1) * record.packed:
        message = f"{record.size} bytes, unpacked from {record.packed}: nothing is compressed so far"
        raise _corrupt(uri, f"record {_shown(record)} claims {message}")


def _check_apart(records: list[Record], directory: int, uri: object) -> None:
    """Refuse records that share bytes: a small file would then unfold to a large one."""
    for record, limit in zip(records, _next_headers(records, directory), strict=True):
        if record.header + LOCAL_BYTES + len(record.name_bytes) + record.packed > limit:
            message = f"{record.packed} bytes behind byte {record.header}, beyond byte {limit} where they end"
            raise _corrupt(uri, f"record {_shown(record)} claims {message}")


def _next_headers(records: list[Record], directory: int) -> list[int]:
    return [*(record.header for record in records), directory][1:]


def _shown(record: Record) -> str:
    return repr(record.name[:100])


def _parse_entry(data: memoryview, at: int, uri: object) -> tuple[Record, int]:
    needed, flags, method, crc32, packed, size, name_n, extra_n, comment_n, attributes, header = (
        struct.unpack_from("<6xHHH4xIIIHHH4xII", data, at)
    )
    wide = needed >= _ZIP64_VERSION or _WIDE in (size, packed, header)
    name_at, extra_at = at + _ENTRY_BYTES, at + _ENTRY_BYTES + name_n
    end = extra_at + extra_n + comment_n
    if end > len(data):
        raise _corrupt(uri, "an entry of its directory reaches beyond it")
    try:
        size, packed, header = _widen(bytes(data[extra_at : extra_at + extra_n]), size, packed, header)
    except struct.error as error:
        raise _corrupt(uri, "a zip64 field of its directory is too short for what it claims") from error
    name_bytes = bytes(data[name_at:extra_at])
    stored = method == 0 and packed == size and not flags & 1
    name = name_bytes.decode("utf-8", "replace")
    described = bool(flags & _HAS_DESCRIPTOR)
    record = Record(name, header, name_bytes, size, packed, stored, described, wide, crc32)
    _check_size(record, method, attributes, uri)
    return record, end


def _widen(extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replace values that did not fit 32 bits by those of the zip64 field (APPNOTE 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            field = extra[at + 4 : at + 4 + length]
            if len(field) < length:  # torch refuses it too: no two readers may see different archives
                raise struct.error("the field reaches beyond its entry")
            wide = [value == _WIDE for value in (size, packed, header)]
            values = iter(struct.unpack_from(f"<{sum(wide)}Q", field))
            size = next(values) if wide[0] else size
            packed = next(values) if wide[1] else packed
            header = next(values) if wide[2] else header
        at += 4 + length
    return size, packed, header


def check_storages(facts: PickleFacts, archive: Archive, uri: object) -> None:
    """Refuse a pickle whose storages are not those of the archive: each in a record of its own, of its size.

    Raises:
        FormatError: it says which storage.
    """
    taken = set[str]()
    for key, fact in facts.storages.items():
        name = f"data/{key}".lower()
        record, width = archive.records.get(name), element_size(fact.type_name)
        shown = repr(key[:100])
        if record is None:
            raise _corrupt(uri, f"its pickle refers to storage {shown}, of which there is no record")
        if name in taken:
            raise _corrupt(uri, f"its pickle takes one record for two storages, {shown} and another")
        taken.add(name)
        if width is not None and fact.numel * width != record.size:
            claim = f"{fact.numel} elements of {width} bytes, its record has {record.size} bytes"
            raise _corrupt(uri, f"storage {shown} is said to have {claim}")


def check_unpacks(read: Read, archive: Archive, uri: object) -> None:
    """Refuse compressed records that do not unpack to what they claim.

    torch's reader checks no checksum, and lets a damaged record refer to bytes before its first: the values
    would be what its memory held before.

    Raises:
        FormatError: it says which record.
    """
    for record in archive.records.values():
        if record.stored or not record.size:
            continue
        name_length, extra_length = struct.unpack_from(
            "<HH", read(record.header, record.header + LOCAL_BYTES), 26
        )
        start = record.header + LOCAL_BYTES + name_length + extra_length
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            unpacked = len(inflater.decompress(read(start, start + record.packed), record.size + 1))
        except zlib.error:
            unpacked = -1
        if unpacked != record.size or not inflater.eof:
            raise _corrupt(uri, f"compressed record {_shown(record)} does not unpack to {record.size} bytes")


def derive_layout(archive: Archive) -> Layout | None:
    """Derive where each record's data begin, or None where that takes more than the directory."""
    starts = derive_starts(archive)
    return Layout(archive, starts) if len(starts) == len(archive.records) else None


def derive_starts(archive: Archive) -> dict[str, int]:
    """Derive where the data of records begin, by their names; those that are compressed are left out."""
    records = list(archive.records.values())
    following = _next_headers(records, archive.directory)
    starts = {
        record.name: _derive_start(record, limit)
        for record, limit in zip(records, following, strict=True)
        if record.stored
    }
    return {name: start for name, start in starts.items() if start is not None}


def _derive_start(record: Record, following: int) -> int | None:
    """Return where the data begin if they end at the next header, less a data descriptor.

    A descriptor has 16 bytes, or 24 with 64-bit sizes; torch's own writer pads data to a multiple of 64, so
    that of several possible starts the aligned one is meant.
    """
    first = record.header + LOCAL_BYTES + len(record.name_bytes)
    descriptors = ((24, 16) if record.wide else (16, 24)) if record.described else (0,)
    possible = [
        start for d in descriptors if first <= (start := following - d - record.size) <= first + 0xFFFF
    ]
    aligned = [start for start in possible if start % _ALIGNMENT == 0]
    return next(iter(aligned or possible), None)
