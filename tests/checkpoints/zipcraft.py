"""A zip writer that obeys: every oddity the format permits, and some it forbids, at the caller's word.

Python's zipfile decides too much by itself (flags, zip64, alignment, checksums) to make the archives other
torch versions, other tools and bad disks leave behind.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from checkpoints.base import save_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

_UNKNOWN = 0xFFFFFFFF  # "see the zip64 extra field"
_DOS_DATE = 0x21  # 1 January 1980


@dataclass(frozen=True)
class Record:
    """One member of an archive and how to write it."""

    name: str
    data: bytes
    deflate: bool = False
    descriptor: bool = False
    zip64: bool = False
    crc: int | None = None
    align: int = 1
    flags: int = 0

    @property
    def body(self) -> bytes:
        """The bytes as they lie in the archive."""
        if not self.deflate:
            return self.data
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(self.data) + packer.flush()

    @property
    def checksum(self) -> int:
        """The CRC-32 to claim, the true one unless told otherwise."""
        return zlib.crc32(self.data) if self.crc is None else self.crc

    @property
    def head(self) -> bytes:
        """What the local header and the directory entry have in common, up to the sizes."""
        method = 8 if self.deflate else 0
        flags = self.flags | (8 if self.descriptor else 0)
        return struct.pack("<HHHHH", 45 if self.zip64 else 20, flags, method, 0, _DOS_DATE)


def saved_records(value: Any, **save_options: Any) -> list[Record]:
    """The records torch.save writes for `value`, without the archive's root folder in their names."""
    archive = zipfile.ZipFile(io.BytesIO(save_bytes(value, **save_options)))
    return [Record(name.split("/", 1)[1], archive.read(name)) for name in archive.namelist()]


def under(root: str, records: Iterable[Record]) -> list[Record]:
    """The records with the archive's root folder put before their names."""
    return [replace(record, name=f"{root}/{record.name}") for record in records]


def write_zip(
    records: Iterable[Record],
    *,
    comment: bytes = b"",
    prefix: bytes = b"",
    zip64_end: bool = False,
    gap_after: str | None = None,
) -> bytes:
    """The archive of these records, in this order; offsets count from the first byte of the prefix.

    Behind one of them, a few bytes may lie that belong to none.
    """
    out, directory, count = bytearray(prefix), bytearray(), 0
    for record in records:
        directory += _directory_entry(record, len(out))
        out += _local_entry(record, len(out))
        if record.name == gap_after:
            out += b"fifteen bytes.\0"
        count += 1
    start = len(out)
    out += directory
    return bytes(out + _end(count, start, len(directory), comment, zip64_end))


def _local_entry(record: Record, offset: int) -> bytes:
    name, body = record.name.encode(), record.body
    sizes = (record.checksum, len(body), len(record.data))
    extra = b""
    if record.zip64:
        extra = struct.pack("<HHQQ", 1, 16, sizes[2], sizes[1])
        shown = (sizes[0], _UNKNOWN, _UNKNOWN)
    else:
        shown = (0, 0, 0) if record.descriptor else sizes
    if record.align > 1:
        pad = -(offset + 30 + len(name) + len(extra) + 4) % record.align
        extra += b"FB" + struct.pack("<H", pad) + b"Z" * pad
    header = b"PK\3\4" + record.head + struct.pack("<IIIHH", *shown, len(name), len(extra))
    tail = b""
    if record.descriptor:
        tail = struct.pack("<4sIQQ" if record.zip64 else "<4sIII", b"PK\7\x08", *sizes)
    return header + name + extra + body + tail


def _directory_entry(record: Record, offset: int) -> bytes:
    name, sizes, extra = record.name.encode(), (len(record.body), len(record.data)), b""
    if record.zip64:
        extra = struct.pack("<HHQQQ", 1, 24, sizes[1], sizes[0], offset)
        sizes, offset = (_UNKNOWN, _UNKNOWN), _UNKNOWN
    shape = struct.pack("<IIIHHHHHII", record.checksum, *sizes, len(name), len(extra), 0, 0, 0, 0, offset)
    return b"PK\1\2" + struct.pack("<H", 45) + record.head + shape + name + extra


def _end(count: int, start: int, size: int, comment: bytes, zip64: bool) -> bytes:
    if not zip64:
        return struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count, size, start, len(comment)) + comment
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    short = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _UNKNOWN, _UNKNOWN, len(comment))
    return wide + locator + struct.pack("<4sHHHHIIH", b"PK\5\6", *short) + comment
