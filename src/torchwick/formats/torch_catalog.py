"""The catalog of what torch.save wrote: the tensors of its pickle, each at its place in a storage."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torchwick.errors import FormatError
from torchwick.formats.catalog import Catalog, Landmark, Packed, Piece, TensorEntry, span
from torchwick.formats.dtypes import of_storage
from torchwick.formats.flatten import TensorFact, flatten
from torchwick.formats.pickles import PickleFacts, look_into
from torchwick.formats.torch_legacy import COUNT_BYTES, read_legacy
from torchwick.formats.torch_zip import (
    Archive,
    Record,
    check_storages,
    derive_starts,
    header_agrees,
    read_archive,
)

__all__ = ["MisplacedError", "legacy_catalog", "misplaced", "unpack", "zip_catalog"]

Read = Callable[[int, int], memoryview]
_LOAD_IT = "torchwick.load reads it as a whole."


@dataclass(frozen=True)
class _Place:
    """Where the elements of a storage are, and what has to be found there."""

    start: int
    size: int
    landmark: Landmark


def zip_catalog(read: Read, size: int, uri: object) -> Catalog:
    """Read the directory and the pickle of a zip checkpoint, and say where its tensors are.

    Args:
        read: returns the bytes of a half-open range.
        size: the object's bytes.
        uri: the object, for messages.

    Raises:
        FormatError: it is corrupt; or its records are compressed, or placed as no known writer does.
    """
    archive = read_archive(read, size, uri)
    records = archive.records
    if "data.pkl" not in records:
        hint = "torch.export archives are loaded whole, by torchwick.load; others are no checkpoints."
        raise FormatError("a zip archive without the data.pkl of torch.save", uri=uri, hint=hint)
    stored = _Stored(read, archive, derive_starts(archive), uri)
    facts = _look(stored.data("data.pkl"), uri)
    check_storages(facts, archive, uri)
    kind = "TorchScript" if "constants.pkl" in records else "torch zip"
    return _catalog(kind, facts, lambda key: stored.place(f"data/{key}".lower()), uri, stored.byteorder)


def unpack(read: Read, size: int, packed: Packed, dtype: str, uri: object) -> tuple[Piece, TensorEntry]:
    """Return where the elements of a box are in the file of torch.save's that it lies in.

    Args:
        read: returns the bytes of a half-open range of that file.
        size: its bytes.
        packed: the box.
        dtype: of its elements.
        uri: the object, for messages.

    Raises:
        FormatError: something else is in the file.
    """
    catalog = zip_catalog(read, size, uri)
    found = list(catalog.entries.values())
    if len(found) != 1 or (found[0].dtype, found[0].shape) != (dtype, packed.shape):
        hint = "It is corrupt: save it again."
        message = (
            f"something else than a tensor {dtype} of shape {list(packed.shape)} is at byte {packed.start}"
        )
        raise FormatError(message, uri=uri, hint=hint)
    (piece,) = found[0].pieces
    assert isinstance(piece, Piece)  # noqa: S101 - for mypy: a zip catalog has no other
    return piece, found[0]


def legacy_catalog(read: Read, size: int | None, uri: object) -> Catalog:
    """Read the pickles of a legacy checkpoint, and say where its tensors are.

    Raises:
        FormatError: it is corrupt, or torch itself has to find its storages.
    """
    legacy = read_legacy(read, size, uri)
    if legacy.storages is None:
        raise FormatError("its storages are of a kind that only torch finds", uri=uri, hint=_LOAD_IT)
    places = {
        place.fact.key: _Place(place.data, place.size, _count(place.start, place.fact.numel))
        for place in legacy.storages
    }
    return _catalog("torch legacy", legacy.facts, places.get, uri, "little")


def _count(start: int, numel: int) -> Landmark:
    expected = struct.pack("<q", numel)
    return Landmark(start, start + COUNT_BYTES, lambda count: bytes(count) == expected)


@dataclass(frozen=True)
class _Stored:
    """The records of an archive that are stored as they are."""

    read: Read
    archive: Archive
    starts: Mapping[str, int]
    uri: object

    def place(self, name: str) -> _Place:
        """Return where a record's data are, as far as the directory tells.

        Raises:
            FormatError: they are compressed, or placed as by no known writer.
        """
        record, start = self.archive.records[name], self.starts.get(name)
        if start is None:
            message = f"record {name[:100]!r} is compressed, or placed as by no known writer"
            raise FormatError(message, uri=self.uri, hint=_LOAD_IT)
        return _Place(start, record.size, _header(record, start))

    def data(self, name: str) -> bytes:
        """Return the data of a record that is needed now, with its header checked."""
        place = self.place(name)
        data = self.read(place.landmark.start, place.start + place.size)
        header = place.start - place.landmark.start
        if not place.landmark.holds(data[:header]):
            raise misplaced(self.uri)
        return bytes(data[header:])

    @property
    def byteorder(self) -> Literal["little", "big"]:
        """Of the elements; archives written before torch 2.1 do not say."""
        said = self.data("byteorder") if "byteorder" in self.archive.records else b"little"
        return "big" if said == b"big" else "little"


class MisplacedError(FormatError):
    """Something else is found in an object than what its directory told. Callers see a `FormatError`."""


def misplaced(uri: object) -> MisplacedError:
    """Return the error for that."""
    return MisplacedError("its records lie where no known writer puts them", uri=uri, hint=_LOAD_IT)


def _header(record: Record, start: int) -> Landmark:
    return Landmark(record.header, start, lambda header: header_agrees(header, record, start))


def _look(data: bytes, uri: object) -> PickleFacts:
    try:
        return look_into(io.BytesIO(data), limit=len(data), uri=uri)
    except EOFError:
        hint = "It is corrupt or was cut short: upload it again, whole."
        raise FormatError("its pickle does not come to an end", uri=uri, hint=hint) from None


def _catalog(
    kind: str,
    facts: PickleFacts,
    place_of: Callable[[str], _Place | None],
    uri: object,
    byteorder: Literal["little", "big"],
) -> Catalog:
    if not facts.followed:
        hint = f"It builds what only the classes it names can build. {_LOAD_IT}"
        raise FormatError("its pickle cannot be followed without importing anything", uri=uri, hint=hint)
    contents = flatten(facts.value, uri)
    entries = {
        name: _entry(name, fact, place_of(fact.storage.key), uri, byteorder)
        for name, fact in contents.tensors.items()
    }
    return Catalog(kind, entries, others=contents.others)


def _entry(
    name: str, fact: TensorFact, place: _Place | None, uri: object, byteorder: Literal["little", "big"]
) -> TensorEntry:
    width = fact.dtype.bits // 8
    needed = (fact.offset + span(fact.shape, fact.stride)) * width if 0 not in fact.shape else 0
    if place is None or needed > place.size:
        hint = "It is corrupt, or made to do harm: upload it again, from a source you trust."
        raise FormatError(f"tensor {name[:100]!r} reaches outside its storage", uri=uri, hint=hint)
    start = place.start + fact.offset * width if needed else place.start
    piece = Piece("", start, fact.shape, fact.stride, place.start, landmark=place.landmark)
    # torch swaps nothing in a storage that has no type.
    order = byteorder if of_storage(fact.storage.type_name) else "little"
    return TensorEntry(fact.dtype.name, fact.shape, (piece,), fact.lazy, order)
