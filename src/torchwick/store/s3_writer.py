"""The write side of S3: one request for each verb, made and signed by botocore, its body sent by our line.

botocore is told how long a body is and what its checksum comes to, and never sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlencode

from torchwick.config import PutOptions
from torchwick.errors import IntegrityError, StoreError, TorchwickError
from torchwick.store.base import DamagedError, Multipart, Stored, StoredPart
from torchwick.store.http import HTTPAnswer
from torchwick.store.pool import LinePool, PooledConnection
from torchwick.store.s3_checksum import CRC64NVME, read, spell
from torchwick.store.s3_exchange import (
    ABORT,
    BEGIN,
    COMPLETE,
    DELETE_OBJECT,
    HEAD_OBJECT,
    PUT_OBJECT,
    PUT_PART,
    Exchange,
    Operation,
)
from torchwick.uri import URI

__all__ = ["Habits", "S3Writer"]

_T = TypeVar("_T")

_DAMAGED = ("BadDigest", "InvalidDigest", "XAmzContentChecksumMismatch")
_KNOWS_NOT = ("InvalidArgument", "InvalidRequest", "MalformedXML", "NotImplemented", "400", "501")
_ABSENT = ("404", "NoSuchKey", "NotFound")
_GONE = ("404", "NoSuchUpload", "NoSuchKey", "NotFound")


@dataclass
class Habits:
    """What a store was found to do.

    Attributes:
        takes_checksums: whether it takes CRC64NVME; some answer that they know no such thing.
    """

    takes_checksums: bool = True


class S3Writer(PooledConnection):
    """One line to S3 that writes; see `torchwick.store.base.Writer`.

    Args:
        send: sends an exchange, and returns the answer.
        habits: what the store was found to do; shared.
        options: what is said about each object.
        pool: where the line is from.
    """

    def __init__(
        self, send: Callable[[Exchange], HTTPAnswer], habits: Habits, options: PutOptions, pool: LinePool
    ) -> None:
        super().__init__(pool)
        self._send = send
        self._habits = habits
        self._about_object = _arguments(options)
        self._owner = (
            {}
            if options.expected_bucket_owner is None
            else {"ExpectedBucketOwner": options.expected_bucket_owner}
        )

    def put(self, uri: URI, body: Sequence[memoryview], checksum: int | None, *, overwrite: bool) -> Stored:
        """Write an object in one request; see `torchwick.store.base.Writer`."""

        def ask(checksum: int | None) -> dict[str, Any]:
            arguments = self._about_object | _condition(overwrite=overwrite) | _checksum(checksum)
            return self._ask(PUT_OBJECT, uri, arguments, body)

        try:
            told = self._with_checksum(ask, checksum)
        except StoreError as error:
            raise _damage(error) or _unconditional(error, overwrite=overwrite) or error from error.__cause__
        return _stored(told, checksum, uri)

    def begin(self, uri: URI) -> Multipart:
        """Begin an upload in parts; see `torchwick.store.base.Writer`."""
        asked = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}

        def ask(checksum: int | None) -> Multipart:
            arguments = {} if checksum is None else asked
            told = self._ask(BEGIN, uri, self._about_object | arguments)
            if not told.get("UploadId"):
                hint = "Look for a proxy on the way that rewrites answers."
                raise StoreError("the store began an upload and did not name it", uri=uri, hint=hint)
            return Multipart(uri, str(told["UploadId"]), checksummed=bool(arguments))

        return self._with_checksum(ask, 0)

    def put_part(
        self,
        multipart: Multipart,
        number: int,
        body: Sequence[memoryview],
        checksum: int | None,
        sent: Callable[[int], object] | None = None,
    ) -> StoredPart:
        """Send one part; see `torchwick.store.base.Writer`."""
        arguments: dict[str, Any] = {"UploadId": multipart.id, "PartNumber": number}
        if multipart.checksummed:
            arguments |= _checksum(checksum)
        try:
            told = self._ask(PUT_PART, multipart.uri, arguments, body, sent)
        except StoreError as error:
            raise _damage(error) or error from error.__cause__
        if not told.get("ETag"):
            hint = "Look for a proxy on the way that rewrites answers."
            raise StoreError("the store took a part and did not name it", uri=multipart.uri, hint=hint)
        kept = read(told.get("ChecksumCRC64NVME"))
        if kept is not None and checksum is not None and kept != checksum:
            raise DamagedError(_ARRIVED_DAMAGED)
        return StoredPart(number, str(told["ETag"]), kept)

    def complete(
        self,
        multipart: Multipart,
        parts: Sequence[StoredPart],
        size: int,
        checksum: int | None,
        *,
        overwrite: bool,
    ) -> Stored:
        """Put the parts together; see `torchwick.store.base.Writer`."""
        arguments: dict[str, Any] = {
            "UploadId": multipart.id,
            "MultipartUpload": {"Parts": [_named(part) for part in parts]},
        }
        arguments |= _condition(overwrite=overwrite)
        if multipart.checksummed and checksum is not None:
            arguments |= _checksum(checksum)
            arguments |= {"ChecksumType": "FULL_OBJECT", "MpuObjectSize": size}
        try:
            told = self._ask(COMPLETE, multipart.uri, arguments)
        except StoreError as error:
            if error.code in _DAMAGED:
                raise _not_what_was_sent(multipart.uri) from None
            raise _unconditional(error, overwrite=overwrite) or error from error.__cause__
        if not told.get("ETag"):  # the error is in the body of a success, or nothing is
            raise ConnectionResetError("the answer ended early")
        return _stored(told, checksum, multipart.uri)

    def discard(self, multipart: Multipart) -> bool:
        """Abort an upload; see `torchwick.store.base.Writer`."""
        try:
            self._ask(ABORT, multipart.uri, {"UploadId": multipart.id})
        except StoreError as error:
            if error.code in _GONE:
                return False
            raise
        return True

    def find(self, uri: URI) -> Stored | None:
        """Look at an object; see `torchwick.store.base.Writer`."""
        try:
            told = self._ask(HEAD_OBJECT, uri, {}, pinned=True)
        except StoreError as error:
            if error.code in _ABSENT:
                return None
            raise
        whole = told.get("ChecksumType") != "COMPOSITE"
        kept = read(told.get("ChecksumCRC64NVME")) if whole else None
        size, modified = told.get("ContentLength"), told.get("LastModified")
        return Stored(told.get("ETag"), told.get("VersionId"), size, kept, modified)

    def delete(self, uri: URI) -> None:
        """Delete an object; see `torchwick.store.base.Writer`."""
        self._ask(DELETE_OBJECT, uri, {})

    def _with_checksum(self, ask: Callable[[int | None], _T], checksum: int | None) -> _T:
        """Ask with a checksum, and once without where the store does not know it, from then on always so."""
        if not self._habits.takes_checksums:
            return ask(None)
        try:
            return ask(checksum)
        except StoreError as error:
            if error.code not in _KNOWS_NOT or checksum is None:
                raise
        answer = ask(None)
        self._habits.takes_checksums = False
        return answer

    def _ask(
        self,
        operation: Operation,
        uri: URI,
        arguments: dict[str, Any],
        body: Sequence[memoryview] = (),
        sent: Callable[[int], object] | None = None,
        *,
        pinned: bool = False,
    ) -> dict[str, Any]:
        exchange = Exchange(operation, uri, self._line, pinned)
        exchange.arguments = arguments | self._owner
        if operation in (PUT_OBJECT, PUT_PART):
            exchange.body, exchange.sent = body, sent
            exchange.arguments["ContentLength"] = sum(map(len, body))
        try:
            self._send(exchange)
        except TorchwickError as error:
            raise error.about(uri) from error.__cause__
        return exchange.told


def _arguments(options: PutOptions) -> dict[str, Any]:
    """Return botocore's arguments for what is said about an object."""
    given = {
        "StorageClass": options.storage_class,
        "ServerSideEncryption": options.server_side_encryption,
        "SSEKMSKeyId": options.kms_key_id,
        "BucketKeyEnabled": options.bucket_key_enabled,
        "ContentType": options.content_type,
        "Tagging": urlencode(options.tags) or None,
        "Metadata": dict(options.metadata) or None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _condition(*, overwrite: bool) -> dict[str, str]:
    return {} if overwrite else {"IfNoneMatch": "*"}


def _checksum(checksum: int | None) -> dict[str, str]:
    return {} if checksum is None else {"ChecksumCRC64NVME": spell(checksum)}


def _named(part: StoredPart) -> dict[str, Any]:
    """Name a part as the store did, with its checksum if the store told one."""
    return {"PartNumber": part.number, "ETag": part.etag} | _checksum(part.checksum)


_ARRIVED_DAMAGED = "what arrived at the store is not what was sent"


def _damage(error: StoreError) -> DamagedError | None:
    """Return the error to try again for, where the store says that bytes were damaged on the way."""
    return DamagedError(f"{_ARRIVED_DAMAGED} (S3 answered {error.code})") if error.code in _DAMAGED else None


def _unconditional(error: StoreError, *, overwrite: bool) -> StoreError | None:
    """Return a better error, where the store does not know conditional writes."""
    if overwrite or error.code not in ("NotImplemented", "501"):
        return None
    hint = "Pass overwrite=True, and see to it yourself that nothing is there."
    text = f"the store cannot write only where nothing is (S3 answered {error.code})"
    return StoreError(text, uri=error.uri, hint=hint, code=error.code, request_id=error.request_id)


def _stored(told: dict[str, Any], checksum: int | None, uri: URI) -> Stored:
    """Read the answer to what made an object appear.

    Raises:
        IntegrityError: it has another checksum than was sent.
    """
    kept = read(told.get("ChecksumCRC64NVME"))
    if kept is not None and checksum is not None and kept != checksum:
        raise _not_what_was_sent(uri, checksum, kept)
    return Stored(told.get("ETag"), told.get("VersionId"), checksum=kept)


def _not_what_was_sent(uri: URI, sent: int | None = None, kept: int | None = None) -> IntegrityError:
    return IntegrityError(
        "the store does not have the bytes that were sent",
        uri=uri,
        hint="Write it again; tensors must not change while they are written.",
        algorithm=CRC64NVME,
        expected=None if sent is None else f"{sent:016x}",
        found=None if kept is None else f"{kept:016x}",
    )
