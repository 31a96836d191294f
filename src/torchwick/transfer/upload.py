"""One object on its way to a store: what is written becomes parts, and the parts an object."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchwick.store import Multipart
from torchwick.transfer.appearance import Appearance, Expected, etag_of_parts
from torchwick.transfer.checksum import Algorithm, fold
from torchwick.transfer.cutting import Cut, Cutter
from torchwick.transfer.sender import Arrivals
from torchwick.transfer.tally import Tally
from torchwick.uri import URI

__all__ = ["Receipt", "Upload"]


@dataclass(frozen=True)
class Receipt:
    """An object that was uploaded.

    Attributes:
        uri: its address.
        size: its bytes.
        etag: its tag, or None where the server gave none.
        version: its S3 version, or None in a bucket without versions.
        checksum: ``"crc64nvme"`` where the server confirmed that of the whole object, else None.
        requests: how many it took.
        retries: how many of them were sent because one had failed.
    """

    uri: URI
    size: int
    etag: str | None
    version: str | None
    checksum: str | None
    requests: int
    retries: int


class Upload:
    """One object on its way; made by `Uploads.begin`.

    Attributes:
        uri: its address.
        size: its bytes.
        multipart: the upload in parts, or None where it goes in one request.
        kept: the bytes of an object that goes in one request.
        arrivals: what the store has.
        tally: what it has cost, besides its parts.
        appearing: what makes it appear, from when on that was tried.
        receipt: what it became, once it is there.
    """

    def __init__(
        self,
        uri: URI,
        size: int,
        *,
        overwrite: bool,
        part_size: int,
        send: Callable[[Upload, Cut], None],
    ) -> None:
        self.uri = uri
        self.size = size
        self.multipart: Multipart | None = None
        self.kept: list[memoryview] = []
        self.arrivals = Arrivals()
        self.tally = Tally()
        self.appearing: Appearance | None = None
        self.receipt: Receipt | None = None
        self._cutter = Cutter(part_size)
        self._send = send
        self._overwrite = overwrite
        self._ended = False

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes. They are not copied, and have to stay as they are until `Uploads.wait` returns.

        Waits while more of them are held than the memory limit, or than the connections need.

        Raises:
            ValueError: they are more than were announced.
            StoreError: a part could not be sent.
        """
        if self._ended or self._cutter.written + memoryview(data).nbytes > self.size:
            raise ValueError(f"{self.uri}: more is written than the {self.size} bytes that were announced")
        for cut in self._cutter.add(data):
            self._send(self, cut)

    def end(self) -> None:
        """Say that all is written.

        Raises:
            ValueError: it is less than was announced.
            StoreError: a part could not be sent.
        """
        if self._cutter.written != self.size:
            text = f"{self._cutter.written} bytes were written, and {self.size} announced"
            raise ValueError(f"{self.uri}: {text}")
        rest = self._cutter.rest()
        if rest is not None:
            self._send(self, rest)
        self._ended = True

    def check(self) -> None:
        """Refuse to go on where it was not ended.

        Raises:
            ValueError: it was not.
        """
        if not self._ended:
            raise ValueError(f"{self.uri}: not all of it was written")

    def appearance(self, how: Algorithm) -> Appearance:
        """Return what makes it appear, once all of its parts are there."""
        checksum, overwrite = self.checksum(how), self._overwrite
        multipart, parts = self.multipart, sorted(self.arrivals.parts, key=lambda part: part.number)
        if multipart is None:
            return Appearance(
                self.uri,
                lambda writer: writer.put(self.uri, self.kept, checksum, overwrite=overwrite),
                Expected(self.size, checksum, lambda: _md5(self.kept)),
            )
        return Appearance(
            self.uri,
            lambda writer: writer.complete(multipart, parts, self.size, checksum, overwrite=overwrite),
            Expected(self.size, checksum, lambda: etag_of_parts(parts)),
        )

    def checksum(self, how: Algorithm) -> int | None:
        """Return the CRC64NVME of the whole, or None where the store takes none."""
        if self.multipart is None:
            value = 0
            for view in self.kept:
                value = how.update(view, value)
            return value
        folded = fold(self.arrivals.pieces, [self.size], how) if self.multipart.checksummed else None
        return None if folded is None else folded[0]


def _md5(views: Sequence[memoryview]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for view in views:
        digest.update(view)
    return digest.hexdigest()
