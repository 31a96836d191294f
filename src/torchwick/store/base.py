"""What a store is: objects and byte ranges, never tensors.

A `Store` hands out `Connection`s; a connection answers one request at a time with a `Body`, which reads
into memory that the caller owns. Every store is held to the same contract by one test suite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torchwick.config import PutOptions
from torchwick.errors import ObjectChangedError, StoreError
from torchwick.uri import URI

__all__ = [
    "Body",
    "Connection",
    "DamagedError",
    "EmptyBody",
    "Listing",
    "Multipart",
    "ObjectInfo",
    "Store",
    "Stored",
    "StoredChecksum",
    "StoredPart",
    "WritableStore",
    "Writer",
    "check_pinned",
    "lying_answer",
]


@dataclass(frozen=True)
class ObjectInfo:
    """One version of one object, as an answer described it.

    Attributes:
        uri: its address.
        size: bytes, or None where the server does not say.
        etag: the tag that changes with the bytes, or None where the server gives none.
        version: the S3 version, or None in a bucket without versions.
        modified: the server's ``Last-Modified``, or None.
        ranged: whether the server answers ranges; without them the object is one stream from its start.
    """

    uri: URI
    size: int | None
    etag: str | None = None
    version: str | None = None
    modified: str | None = None
    ranged: bool = True


Listing = list[ObjectInfo]
"""What lies directly in a directory, sorted by name; of each object the address, size and tag are known."""


@dataclass(frozen=True)
class StoredChecksum:
    """What a store keeps to tell whether an object's bytes are still those that were stored.

    Attributes:
        algorithm: ``"crc64nvme"``, ``"crc32"`` or ``"crc32c"``.
        parts: (stop, checksum) of each stretch of the object that has a checksum of its own, in order: each
            goes from where the one before it stops up to its own `stop`. One stretch where the checksum is
            of the whole object.
    """

    algorithm: str
    parts: tuple[tuple[int, int], ...]


class Body(Protocol):
    """The bytes of one answer, from ``start`` up to ``stop`` (None: until the server closes)."""

    info: ObjectInfo
    start: int
    stop: int | None

    def readinto(self, buffer: memoryview) -> int:
        """Read up to ``len(buffer)`` bytes into `buffer`; 0 means that the body has ended."""
        ...

    def close(self) -> None:
        """Let the connection go on with its next request."""
        ...


class EmptyBody:
    """The body of an object of zero bytes, which servers refuse to answer a range of."""

    def __init__(self, info: ObjectInfo) -> None:
        self.info = info
        self.start = 0
        self.stop: int | None = 0

    def readinto(self, buffer: memoryview) -> int:  # noqa: ARG002
        """Return 0: the end."""
        return 0

    def close(self) -> None:
        """Hold nothing, let go of nothing."""


class Connection(Protocol):
    """One line to the store, used by one thread at a time, kept open between requests."""

    def get(
        self,
        uri: URI,
        start: int,
        stop: int | None,
        pinned: ObjectInfo | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Body:
        """Ask for the half-open range ``[start, stop)``, bytes; a negative `start` counts from the end.

        Args:
            uri: the object.
            start: first byte.
            stop: one past the last byte; None reads to the end.
            pinned: the version this must be; any other is `ObjectChangedError`.
            while_waiting: called once, after the request has gone out and before the answer is awaited.

        Raises:
            StoreError: the store refused.
            OSError: the network failed; the connection starts afresh at the next call.
        """
        ...

    def checksum(self, info: ObjectInfo) -> StoredChecksum | None:
        """Return what the store keeps of this version's bytes, or None if it keeps nothing.

        Raises:
            StoreError: the store refused to tell.
            OSError: the network failed.
        """
        ...

    def list(self, directory: URI) -> Listing | None:
        """Return the objects directly in a directory; deeper ones are left out, as are directories.

        Each may be pinned: a `get` is `ObjectChangedError` if it was overwritten after the listing.

        Args:
            directory: its address, or the same without the slash.

        Returns:
            The objects; none where S3 knows no key that begins so. None where the store lists nothing at all.

        Raises:
            ObjectNotFoundError: there is no such bucket, or no such directory among files.
            AccessDeniedError: the directory may not be listed, whether its objects may be read or not.
            StoreError: the store refused, or lists more objects than a checkpoint has.
            OSError: the network failed.
        """
        ...

    def entries(self, directory: URI) -> Listing | None:
        """Return what `list` does, and the directories in it: their addresses end in a slash.

        Args:
            directory: its address, or the same without the slash.

        Raises:
            OSError: as by `list`.
        """
        ...

    def reset(self) -> None:
        """Close the line; the next request opens a new one."""
        ...

    def abort(self) -> None:
        """From any thread: make the call in progress fail now, and every later one at once."""
        ...

    def release(self) -> None:
        """Leave the line, idle or aborted, to whoever connects next; the connection is not used again."""
        ...


class Store(Protocol):
    """A place where objects are."""

    @property
    def secure(self) -> bool:
        """Whether bytes are decrypted on the way, which costs processor time for each connection."""
        ...

    @property
    def keeps_checksums(self) -> bool:
        """Whether it is worth asking for an object's checksum."""
        ...

    def connect(self) -> Connection:
        """Return a connection that no one else uses, over a line kept alive where there is one."""
        ...


@dataclass(frozen=True)
class Stored:
    """An object that is there, as the answer to its writing or to a look at it told.

    Attributes:
        etag: its tag, or None where the server gives none.
        version: its S3 version, or None in a bucket without versions.
        size: its bytes, or None where the answer does not say.
        checksum: its CRC64NVME as the server keeps it, or None where it keeps none.
        modified: the server's ``Last-Modified``, or None where the answer does not say.
    """

    etag: str | None
    version: str | None = None
    size: int | None = None
    checksum: int | None = None
    modified: str | None = None


@dataclass(frozen=True)
class Multipart:
    """An object that is uploaded in parts, and does not exist until they are put together.

    Attributes:
        uri: its address.
        id: the server's name for the upload.
        checksummed: whether the server was told that checksums come.
    """

    uri: URI
    id: str
    checksummed: bool


@dataclass(frozen=True)
class StoredPart:
    """A part that the server has.

    Attributes:
        number: from 1.
        etag: what the server calls it by.
        checksum: its CRC64NVME as the server told it, or None.
    """

    number: int
    etag: str
    checksum: int | None


class DamagedError(ConnectionAbortedError):
    """What arrived at the store is not what was sent: another attempt may mend it."""


class Writer(Protocol):
    """One line to the store that writes, used by one thread at a time, kept open between requests.

    Bodies are sent from the caller's memory, which must stay as it is until the call returns. Checksums are
    CRC64NVME; None where none is known. Every call raises `StoreError` where the store refused, and `OSError`
    where the network failed: then nobody knows whether the store did what it was asked.
    """

    def put(self, uri: URI, body: Sequence[memoryview], checksum: int | None, *, overwrite: bool) -> Stored:
        """Write an object in one request.

        Raises:
            ObjectExistsError: there is one, and it may not be overwritten.
        """
        ...

    def begin(self, uri: URI) -> Multipart:
        """Begin an upload in parts."""
        ...

    def put_part(
        self,
        multipart: Multipart,
        number: int,
        body: Sequence[memoryview],
        checksum: int | None,
        sent: Callable[[int], object] | None = None,
    ) -> StoredPart:
        """Send one part, or send it again.

        Args:
            multipart: the upload.
            number: which, from 1.
            body: its bytes.
            checksum: what they come to.
            sent: told how many bytes went out, as they go.

        Raises:
            DamagedError: the store has other bytes.
        """
        ...

    def complete(
        self,
        multipart: Multipart,
        parts: Sequence[StoredPart],
        size: int,
        checksum: int | None,
        *,
        overwrite: bool,
    ) -> Stored:
        """Put the parts together: the object appears.

        Raises:
            ObjectExistsError: there is one, and it may not be overwritten.
        """
        ...

    def discard(self, multipart: Multipart) -> bool:
        """Abort an upload, so that nothing of it stays; return False where there was none any more."""
        ...

    def find(self, uri: URI) -> Stored | None:
        """Look at an object; None: there is none."""
        ...

    def delete(self, uri: URI) -> None:
        """Delete an object, whether there is one or not."""
        ...

    def reset(self) -> None:
        """Close the line; the next request opens a new one."""
        ...

    def abort(self) -> None:
        """From any thread: make the call in progress fail now, and every later one at once."""
        ...

    def release(self) -> None:
        """Leave the line, idle or aborted, to whoever connects next; the writer is not used again."""
        ...


class WritableStore(Protocol):
    """A place that objects can be written to."""

    @property
    def secure(self) -> bool:
        """Whether bytes are encrypted on the way, which costs processor time for each connection."""
        ...

    @property
    def takes_checksums(self) -> bool:
        """Whether checksums are sent with what is written; no longer once the store has refused them."""
        ...

    def writer(self, options: PutOptions) -> Writer:
        """Return a writer that no one else uses, over a line kept alive where there is one."""
        ...


def check_pinned(info: ObjectInfo, pinned: ObjectInfo) -> None:
    """Refuse an answer that speaks of another version than the pinned one.

    Raises:
        ObjectChangedError: its tag or its size differs; where the store gives no tags, its date.
    """
    tag, pinned_tag = (info.etag, pinned.etag) if pinned.etag else (info.modified, pinned.modified)
    if (_bare(tag), info.size) != (_bare(pinned_tag), pinned.size):
        raise ObjectChangedError(
            f"the object was overwritten while it was being read (size {pinned.size} then {info.size}, "
            f"tag {pinned_tag} then {tag})",
            uri=info.uri,
            hint="Load it again, or pin one version with ?versionId=.",
        )


def _bare(tag: str | None) -> str | None:
    """Return a tag without its quotes: some answers about a version leave them out, and mean the same."""
    return None if tag is None else tag.strip('"')


def lying_answer(uri: URI, message: str) -> StoreError:
    """Return the error for an answer that contradicts its request; asking again would ask the same liar."""
    return StoreError(message, uri=uri, hint="Look for a proxy or cache on the way that rewrites answers.")
