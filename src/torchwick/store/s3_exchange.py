"""A request to S3 on its way: what it asks for, over which line, and what came back."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torchwick.config import S3Config
from torchwick.store.http import Headers, HTTPAnswer
from torchwick.store.line import Line
from torchwick.store.s3_client import customer_key
from torchwick.uri import URI

__all__ = ["GET_OBJECT", "HEAD_OBJECT", "LIST_OBJECTS", "LIST_PARTS", "Exchange", "Operation", "Signed"]

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
    """

    name: str
    call: str
    method: str = "GET"
    arguments: dict[str, Any] = field(default_factory=dict)
    about: Callable[[URI, S3Config], dict[str, Any]] = _object


GET_OBJECT = Operation("GetObject", "get_object")
HEAD_OBJECT = Operation("HeadObject", "head_object", "HEAD", {"ChecksumMode": "ENABLED"})
LIST_PARTS = Operation(
    "GetObjectAttributes", "get_object_attributes", arguments={"ObjectAttributes": ["ETag", "ObjectParts"]}
)
LIST_OBJECTS = Operation("ListObjectsV2", "list_objects_v2", about=_directory)


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
    while_waiting: Callable[[], None] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    """What botocore made of the answer, if it read it."""
    answer: HTTPAnswer = field(init=False)
    redirects: int = 0
    """How often the store pointed elsewhere without a name."""
    secrets: tuple[str, ...] = ()
    """What was sent and must not be repeated, should the answer repeat it."""

    def send(self, url: str, signed_headers: dict[str, str]) -> HTTPAnswer:
        """Send it as botocore signed it, and what needs no signature."""
        self.secrets = tuple(v for k, v in signed_headers.items() if k.lower() in _SECRET_HEADERS)
        headers = Headers(signed_headers | self.conditions)
        self.answer = self.line.request(url, headers, self.while_waiting, method=self.operation.method)
        return self.answer
