"""What files are made of: bytes that are known beforehand, and between them those of tensors, as they come.

Tensors come as a stream of contents, one for each in the order of the files; a file takes as many as it has.
Its size is known before the first of them.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from torchwick.formats.torch_zip_writing import (
    PlacedRecord,
    closing,
    closing_size,
    first_records,
    last_records,
    place,
)
from torchwick.saving.sink import Sink

if TYPE_CHECKING:
    import torch

__all__ = ["ArchiveFile", "Content", "Draft", "File", "PlainFile", "TensorFile"]

Content = Iterable[memoryview]
"""The bytes of one tensor, in stretches."""


@dataclass(frozen=True)
class Draft:
    """Files that are to be written, and the tensors whose bytes they take.

    Attributes:
        format: what they are, as `SaveReport.format` says it.
        files: in the order in which they are written.
        tensors: in the order in which the files take them.
    """

    format: str
    files: tuple[File, ...]
    tensors: tuple[torch.Tensor, ...]


class File(Protocol):
    """A file that is to be written."""

    @property
    def name(self) -> str:
        """Its name in its directory."""
        ...

    @property
    def size(self) -> int:
        """Its bytes."""
        ...

    @property
    def tensors(self) -> int:
        """How many contents it takes."""
        ...

    def write(self, sink: Sink, contents: Iterator[Content]) -> None:
        """Write all of it.

        Raises:
            StoreError: it cannot be written.
        """
        ...


@dataclass(frozen=True)
class PlainFile:
    """A file without tensors, such as an index."""

    name: str
    data: bytes

    tensors = 0

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.data)

    def write(self, sink: Sink, contents: Iterator[Content]) -> None:  # noqa: ARG002
        """Write all of it; see `File`."""
        sink.write(self.data)


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file: a header, and tensors behind one another.

    Attributes:
        name: its name in its directory.
        header: what stands before the tensors.
        data: bytes of the tensors.
        names: of the tensors, in their order.
    """

    name: str
    header: bytes
    data: int
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        return len(self.header) + self.data

    @property
    def tensors(self) -> int:
        """How many there are."""
        return len(self.names)

    def write(self, sink: Sink, contents: Iterator[Content]) -> None:
        """Write all of it; see `File`."""
        sink.write(self.header)
        for content in itertools.islice(contents, len(self.names)):
            for part in content:
                sink.write(part)


@dataclass(frozen=True)
class ArchiveFile:
    """A zip archive as `torch.save` writes it: a pickle, and storages in records of their own.

    Attributes:
        name: its name in its directory.
        pickled: the pickle.
        storages: bytes of each storage, by its key, in the order of the keys.
    """

    name: str
    pickled: bytes
    storages: dict[str, int]

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._placed[-1].stop + closing_size(self._placed)

    @property
    def tensors(self) -> int:
        """How many storages there are."""
        return len(self.storages)

    @cached_property
    def _placed(self) -> list[PlacedRecord]:
        first = [(name, len(data)) for name, data in first_records(self.pickled).items()]
        storages = [(f"data/{key}", size) for key, size in self.storages.items()]
        last = [(name, len(data)) for name, data in last_records({}).items()]
        return place([*first, *storages, *last])

    def write(self, sink: Sink, contents: Iterator[Content]) -> None:
        """Write all of it; see `File`."""
        crc32: dict[str, int] = {}
        records = iter(self._placed)
        texts = first_records(self.pickled).values()
        first: Iterator[Content] = ([memoryview(data)] for data in texts)
        for content in itertools.chain(first, itertools.islice(contents, self.tensors)):
            record = next(records)
            crc32[record.name] = _write_record(sink, record, content)
        for data in last_records(crc32).values():
            record = next(records)
            crc32[record.name] = _write_record(sink, record, [memoryview(data)])
        sink.write(closing(self._placed, crc32))


def _write_record(sink: Sink, record: PlacedRecord, content: Content) -> int:
    """Write a record, and return its checksum."""
    sink.write(record.opening())
    crc32 = 0
    for part in content:
        sink.write(part)
        crc32 = zlib.crc32(part, crc32)
    if record.size:
        sink.write(record.descriptor(crc32))
    return crc32
