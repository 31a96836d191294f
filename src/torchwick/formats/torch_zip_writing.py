"""Lays out torch's zip format for writing: where each record begins, and every byte that is not the caller's.

It is what torch's own writer lays out, byte for byte (miniz in caffe2/serialize/inline_container.cc):
records lie uncompressed behind one another, their data at multiples of 64, and a data descriptor with its
checksum follows each that is not empty. So a file can be written from its start to its end, and its size is
known before.
"""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ALIGNMENT", "PlacedRecord", "closing", "closing_size", "first_records", "last_records", "place"]

ALIGNMENT = 64
_ROOT = "archive/"  # as torch calls it where it writes to no file of its own
_WIDE = 0xFFFFFFFF
_DESCRIBED, _UTF8 = 1 << 3, 1 << 11  # general purpose flags: a descriptor follows the data; of the names
_LOCAL_BYTES = 30
_VERSION = b"3\n"  # kProducedFileFormatVersion: what every torch since 1.6 reads


@dataclass(frozen=True)
class PlacedRecord:
    """A record, and where it is.

    Attributes:
        name: below the archive's root.
        size: bytes of its data.
        header: offset of its local header.
        start: offset of its data.
    """

    name: str
    size: int
    header: int
    start: int

    @property
    def path(self) -> bytes:
        """Its whole name."""
        return f"{_ROOT}{self.name}".encode()

    @property
    def stop(self) -> int:
        """One past its data and the descriptor behind them."""
        return self.start + self.size + len(self.descriptor(0))

    @property
    def zip64(self) -> bytes:
        """The field for numbers beyond 32 bits, empty where there are none."""
        return _zip64(self.size, self.header)

    @property
    def _flags(self) -> int:
        return _UTF8 | (_DESCRIBED if self.size else 0)

    def opening(self) -> bytes:
        """Return the local header, padded up to the data."""
        padding = self.start - self.header - _LOCAL_BYTES - len(self.path) - len(self.zip64) - 4
        extra = self.zip64 + struct.pack("<2sH", b"FB", padding) + b"Z" * padding
        sizes = b"\xff" * 8 if self.size >= _WIDE else bytes(8)
        lengths = len(self.path), len(extra)
        fixed = struct.pack("<4sHHH4xI8sHH", b"PK\x03\x04", 0, self._flags, 0, 0, sizes, *lengths)
        return fixed + self.path + extra

    def descriptor(self, crc32: int) -> bytes:
        """Return what follows the data."""
        if not self.size:
            return b""
        return struct.pack("<4sIQQ" if self.zip64 else "<4sIII", b"PK\x07\x08", crc32, self.size, self.size)

    def entry(self, crc32: int) -> bytes:
        """Return what the directory says of it."""
        size = min(self.size, _WIDE)
        fixed = struct.pack(
            "<4sHHHH4xIIIHHH8xI",
            b"PK\x01\x02",
            *(0, 0, self._flags, 0),
            *(crc32, size, size),
            *(len(self.path), len(self.zip64), 0),
            min(self.header, _WIDE),
        )
        return fixed + self.path + self.zip64


def _zip64(size: int, header: int) -> bytes:
    numbers = ([size, size] if size >= _WIDE else []) + ([header] if header >= _WIDE else [])
    return struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""


def first_records(pickled: bytes) -> dict[str, bytes]:
    """Return the records before the storages, in their order.

    Args:
        pickled: what the pickler wrote.
    """
    return {
        "data.pkl": pickled,
        ".format_version": b"1",
        ".storage_alignment": str(ALIGNMENT).encode(),
        "byteorder": sys.byteorder.encode(),
    }


def last_records(crc32: Mapping[str, int]) -> dict[str, bytes]:
    """Return the records behind the storages.

    Args:
        crc32: of each record before them, by name. What identifies the archive is made of them.
    """
    names = zlib.crc32("\n".join(sorted(crc32)).encode())
    data = zlib.crc32(b"".join(value.to_bytes(4, "little") for value in crc32.values()))
    return {"version": _VERSION, ".data/serialization_id": b"%020d%020d" % (names, data)}


def place(records: Iterable[tuple[str, int]]) -> list[PlacedRecord]:
    """Lay records out behind one another, by name and size.

    Example:
        >>> [(record.header, record.start) for record in place([("data.pkl", 100), ("data/0", 8)])]
        [(0, 64), (180, 256)]
    """
    placed, header = list[PlacedRecord](), 0
    for name, size in records:
        fields = len(f"{_ROOT}{name}".encode()) + len(_zip64(size, header)) + 4
        first = header + _LOCAL_BYTES + fields
        placed.append(PlacedRecord(name, size, header, first + -first % ALIGNMENT))
        header = placed[-1].stop
    return placed


def closing(placed: Sequence[PlacedRecord], crc32: Mapping[str, int]) -> bytes:
    """Return the directory and the records that end the archive.

    Args:
        placed: all records.
        crc32: of the data of each, by name.
    """
    directory = b"".join(record.entry(crc32[record.name]) for record in placed)
    count, start, size = len(placed), placed[-1].stop, len(directory)
    end64 = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 0x031E, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, start + size, 1)
    narrow = min(count, 0xFFFF), min(count, 0xFFFF), min(size, _WIDE), min(start, _WIDE)
    return directory + end64 + locator + struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, *narrow, 0)


def closing_size(placed: Sequence[PlacedRecord]) -> int:
    """Return how many bytes `closing` will have."""
    return len(closing(placed, dict.fromkeys((record.name for record in placed), 0)))
