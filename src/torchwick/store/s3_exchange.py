"""A request to S3 on its way: what it asks for, over which line, and what came back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchwick.config import S3Config
from torchwick.store.http import Headers, HTTPAnswer
from torchwick.store.line import Line
from torchwick.store.s3_client import customer_key
from torchwick.uri import URI

__all__ = [
    "ABORT",
    "BEGIN",
    "COMPLETE",
    "DELETE_OBJECT",
    "GET_OBJECT",
    "HEAD_OBJECT",
    "LIST_OBJECTS",
    "LIST_PARTS",
    "PUT_OBJECT",
    "PUT_PART",
    "READS",
    "WRITES",
    "Exchange",
    "Operation",
    "Signed",
]

_SECRET_HEADERS = (
    "authorization",
    "x-amz-s3session-token",
    "x-amz-security-token",
    "x-amz-server-side-encryption-customer-key",
)
_SIGNATURE_LIFE = 60.0  # seconds; S3 refuses a signature after 15 minutes, Express sessions end after 5


@dataclass(frozen=True)
class Signed:
    """A request as botocore signed it, but for the headers that vary from part to part."""

    url: str
    headers: dict[str, str] = field(repr=False)  # the signature and the session token are among them
    since: float

    @property
    def fresh(self) -> bool:
        """Whether S3 still takes it."""
        return time.monotonic() - self.since < _SIGNATURE_LIFE


def _object(uri: URI, config: S3Config) -> dict[str, Any]:
    """Return the arguments that name one object, and give the key that it is encrypted with."""
    version = {} if uri.version is None else {"VersionId": uri.version}
    return {"Bucket": uri.bucket, "Key": uri.key} | version | customer_key(config)


def _new_object(uri: URI, config: S3Config) -> dict[str, Any]:
    """Return the arguments that name what is written, and give the key that is to encrypt it."""
    return {"Bucket": uri.bucket, "Key": uri.key} | customer_key(config)


def _key(uri: URI, config: S3Config) -> dict[str, Any]:  # noqa: ARG001
    """Return the arguments that only name an object, or one version of it."""
    return {"Bucket": uri.bucket, "Key": uri.key} | (
        {} if uri.version is None else {"VersionId": uri.version}
    )


def _directory(uri: URI, config: S3Config) -> dict[str, Any]:  # noqa: ARG001
    """Return the arguments that name the keys of a directory, up to the next slash."""
    prefix = {"Prefix": uri.key} if uri.key else {}
    return {"Bucket": uri.bucket, "Delimiter": "/"} | prefix


@dataclass(frozen=True)
class Operation:
    """One of S3's operations that travel over a line.

    Attributes:
        name: S3's name for it.
        call: botocore's.
        method: HTTP's.
        arguments: what it is always told.
        about: what it is told of the address.
        repeatable: whether it may be sent twice without a word, and means the same.
        longest: seconds that its answer may take to end; None: as long as any.
    """

    name: str
    call: str
    method: str = "GET"
    arguments: dict[str, Any] = field(default_factory=dict)
    about: Callable[[URI, S3Config], dict[str, Any]] = _object
    repeatable: bool = True
    longest: float | None = None


GET_OBJECT = Operation("GetObject", "get_object")
HEAD_OBJECT = Operation("HeadObject", "head_object", "HEAD", {"ChecksumMode": "ENABLED"})
LIST_PARTS = Operation(
    "GetObjectAttributes", "get_object_attributes", arguments={"ObjectAttributes": ["ETag", "ObjectParts"]}
)
LIST_OBJECTS = Operation("ListObjectsV2", "list_objects_v2", about=_directory)
READS = (GET_OBJECT, HEAD_OBJECT, LIST_PARTS, LIST_OBJECTS)

# A put that was refused only because it had succeeded before looks like one that came too late.
PUT_OBJECT = Operation("PutObject", "put_object", "PUT", about=_new_object, repeatable=False)
BEGIN = Operation(
    "CreateMultipartUpload", "create_multipart_upload", "POST", about=_new_object, repeatable=False
)
PUT_PART = Operation("UploadPart", "upload_part", "PUT", about=_new_object)
# "Processing of a CompleteMultipartUpload request could take several minutes" (Amazon S3 API reference);
# white space comes meanwhile.
COMPLETE = Operation(
    "CompleteMultipartUpload",
    "complete_multipart_upload",
    "POST",
    about=_new_object,
    repeatable=False,
    longest=900.0,
)
ABORT = Operation("AbortMultipartUpload", "abort_multipart_upload", "DELETE", about=_key)
DELETE_OBJECT = Operation("DeleteObject", "delete_object", "DELETE", about=_key)
WRITES = (PUT_OBJECT, BEGIN, PUT_PART, COMPLETE, ABORT, DELETE_OBJECT)


@dataclass(repr=False)
class Exchange:
    """A request under way and its answer, known to this thread on both sides of botocore."""

    operation: Operation
    uri: URI
    line: Line
    pinned: bool
    """Whether the object has been seen before, in the version that is asked for again."""
    conditions: dict[str, str] = field(default_factory=dict)
    """Headers that S3 does not want signed: the range, the version."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the operation is told besides the address."""
    body: Sequence[memoryview] = ()
    """What is sent besides the head, where botocore is not given it."""
    sent: Callable[[int], object] | None = None
    """Told how many bytes of the body went out, as they go."""
    while_waiting: Callable[[], None] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    """What botocore made of the answer, if it read it."""
    answer: HTTPAnswer = field(init=False)
    redirects: int = 0
    """How often the store pointed elsewhere without a name."""
    secrets: tuple[str, ...] = ()
    """What was sent and must not be repeated, should the answer repeat it."""

    def send(self, url: str, signed_headers: dict[str, str], made: bytes | None = None) -> HTTPAnswer:
        """Send it as botocore signed it, and what needs no signature.

        Args:
            url: where to.
            signed_headers: as botocore made them.
            made: the body, where botocore made that too.
        """
        self.secrets = tuple(v for k, v in signed_headers.items() if k.lower() in _SECRET_HEADERS)
        operation = self.operation
        self.answer = self.line.request(
            url,
            Headers(signed_headers | self.conditions),
            self.while_waiting,
            method=operation.method,
            body=[memoryview(made)] if made else self.body,
            sent=self.sent,
            repeatable=operation.repeatable,
        )
        self.answer.patience = operation.longest or self.answer.patience
        return self.answer
