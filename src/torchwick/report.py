"""What loads and saves tell: `Progress` while they run, `LoadReport` and `SaveReport` when they are done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["LoadReport", "LoadResult", "Method", "Progress", "ProgressCallback", "SaveReport", "SavedFile"]

Method = Literal["filled", "deferred", "spooled"]


@dataclass(frozen=True)
class Progress:
    """How far a load or a save has come.

    Attributes:
        uri: the object, as text without secrets.
        done: bytes that have arrived, or were sent.
        total: bytes that will have been at the end.
        connections: connections that are open now.

    Example:
        >>> Progress("s3://models/new.pt", 50, 200, 4).fraction
        0.25
    """

    uri: str
    done: int
    total: int
    connections: int

    @property
    def fraction(self) -> float:
        """`done` of `total`, from 0 to 1."""
        return self.done / self.total if self.total else 1.0


ProgressCallback = Callable[[Progress], object]


@dataclass(frozen=True)
class LoadReport:
    """What a finished load did.

    Attributes:
        uri: the object, as text without secrets.
        format: ``"safetensors"``, ``"torch zip"``, ``"torch legacy"``, ``"torch tar"``, ``"TorchScript"``
            or ``"pt2"``.
        method: how the bytes reached their tensors. ``"filled"``: read into tensors laid out from the
            header; ``"deferred"``: read into storages that torch.load laid out; ``"spooled"``: read into
            memory that torch's own loader then opened as a file.
        size: the object's size, bytes.
        bytes_read: bytes received in answers, those that had to be read again included.
        requests: requests sent.
        retries: requests that repeated a failed one.
        connections: the most connections open at once.
        seconds: from the call to the tensors.
        etag: the store's tag of the one version that was read, or None where the store gives none.
        version: the S3 version that was read, or None in a bucket without versions.
        verified: the checksum the bytes were verified against, or None: nothing was.
    """

    uri: str
    format: str
    method: Method
    size: int
    bytes_read: int
    requests: int
    retries: int
    connections: int
    seconds: float
    etag: str | None
    version: str | None
    verified: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class SavedFile:
    """A file that was written.

    Attributes:
        uri: where it is, as text without secrets.
        size: its bytes.
        tensors: how many are in it; in torch's zip format, how many storages.
        etag: the store's tag of it, or None where it gives none.
        version: the S3 version that it became, or None in a bucket without versions.
    """

    uri: str
    size: int
    tensors: int
    etag: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class SaveReport:
    """What a finished save did.

    Attributes:
        uri: where to, as it was given, without secrets.
        format: ``"safetensors"`` or ``"torch zip"``.
        files: what was written, in the order of the shards, the index last.
        deleted: what was there before, and was deleted.
        tensors: how many were written; in torch's zip format, how many storages.
        size: bytes of the files.
        requests: requests sent.
        retries: requests that repeated a failed one.
        connections: the most connections open at once.
        seconds: from the call to the files.
        verified: the checksum that the server confirmed for every file, ``"crc64nvme"``, or None.

    Example:
        >>> file = SavedFile("s3://models/new.safetensors", 80, 1)
        >>> report = SaveReport("s3://models/new.safetensors", "safetensors", (file,), tensors=1, size=80)
        >>> report.to_dict()["files"]
        [{'uri': 's3://models/new.safetensors', 'size': 80, 'tensors': 1, 'etag': None, 'version': None}]
    """

    uri: str
    format: str
    files: tuple[SavedFile, ...]
    deleted: tuple[str, ...] = ()
    tensors: int = 0
    size: int = 0
    requests: int = 0
    retries: int = 0
    connections: int = 0
    seconds: float = 0.0
    verified: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain types, for JSON."""
        return asdict(self) | {"files": [asdict(file) for file in self.files], "deleted": [*self.deleted]}


class LoadResult(NamedTuple):
    """What did not fit when a module was filled, by name; both are empty after a strict load.

    Attributes:
        missing: names of the module that the checkpoint has nothing for: they are as they were before.
        unexpected: names of the checkpoint that the module has no place for: they were not read.
    """

    missing: list[str]
    unexpected: list[str]
