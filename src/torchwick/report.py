"""What a load tells about itself: `Progress` while it runs, `LoadReport` when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["LoadReport", "LoadResult", "Method", "Progress", "ProgressCallback"]

Method = Literal["filled", "deferred", "spooled"]


@dataclass(frozen=True)
class Progress:
    """How far a load has come.

    Attributes:
        uri: the object, as text without secrets.
        done: bytes that have arrived.
        total: bytes that will have arrived at the end.
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


class LoadResult(NamedTuple):
    """What did not fit when a module was filled, by name; both are empty after a strict load.

    Attributes:
        missing: names of the module that the checkpoint has nothing for: they are as they were before.
        unexpected: names of the checkpoint that the module has no place for: they were not read.
    """

    missing: list[str]
    unexpected: list[str]
