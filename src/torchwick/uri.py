"""Where an object is: text parsed once into a frozen `URI`.

Four kinds of text are understood: ``s3://bucket/key`` (with ``?versionId=…``), ``http(s)://host/path``
(public or presigned), ``file:///path``, and a plain local path.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

from torchwick.errors import URIError

__all__ = ["URI", "parse"]

_S3_ARN = re.compile(
    r"(arn:[\w-]+:s3[\w-]*:[\w-]*:\d*:(?:outpost[/:][\w-]+[/:])?accesspoint[/:][\w.-]+)/(.*)", re.DOTALL
)
_VERSION = re.compile(r"\?versionId=([^&?#]+)$")


@dataclass(frozen=True)
class URI:
    """One object's address.

    Attributes:
        scheme: ``"s3"``, ``"http"``, ``"https"`` or ``"file"``.
        bucket: the bucket or access-point ARN; for the web ``host[:port]``; empty for a local file.
        key: the object's key as S3 spells it; for the web the path as sent; for a file its path.
        version: the S3 version asked for, or None for the newest.
        query: the web's query string. It may carry a signature, so that it is never shown.

    Example:
        >>> parse("s3://models/llama/model.pt?versionId=abc")
        URI('s3://models/llama/model.pt?versionId=abc')
        >>> str(parse("https://host/model.pt?X-Amz-Signature=secret"))
        'https://host/model.pt?…'
    """

    scheme: Literal["s3", "http", "https", "file"]
    bucket: str
    key: str
    version: str | None = None
    query: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.key
        if self.scheme == "s3":
            return f"s3://{self.bucket}/{self.key}" + (f"?versionId={self.version}" if self.version else "")
        return f"{self.scheme}://{self.bucket}{self.key}" + ("?…" if self.query else "")

    def __repr__(self) -> str:
        return f"URI({str(self)!r})"


def parse(text: str | os.PathLike[str]) -> URI:
    """Parse an address.

    Args:
        text: an S3 URI, a web URL, or a local path.

    Returns:
        The address, taken apart.

    Raises:
        URIError: it is empty, of an unknown scheme, or lacks a bucket or a key.

    Example:
        >>> parse("s3://models/new.pt").key
        'new.pt'
        >>> parse("checkpoints/new.pt").scheme
        'file'
    """
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _parse_path(text)
    match scheme.lower():
        case "s3":
            return _parse_s3(text, rest)
        case "http" | "https":
            return _parse_web(text)
        case "file":
            return URI("file", "", unquote(urlsplit(text).path))
    hint = "Use s3://bucket/key, https://host/path or a local path."
    raise URIError(f"the scheme {scheme!r} is not one torchwick reads", uri=text, hint=hint)


def _parse_path(text: str) -> URI:
    if not text:
        raise URIError("the URI is empty", hint="Use s3://bucket/key, https://host/path or a local path.")
    if re.match(r"(s3|https?):/[^/]", text):
        hint = "pathlib.Path folds the two slashes into one; pass the URI as a str."
        raise URIError("the URI has one slash after its scheme where two belong", uri=text, hint=hint)
    return URI("file", "", text)


def _parse_s3(text: str, rest: str) -> URI:
    arn = _S3_ARN.fullmatch(rest)
    bucket, _, key = (arn[1], "/", arn[2]) if arn else rest.partition("/")
    version = _VERSION.search(key)
    key = key[: version.start()] if version else key
    if not bucket:
        raise URIError("the bucket is missing", uri=text, hint="Write s3://bucket/key.")
    if not key:
        raise URIError("the key is missing", uri=text, hint="Name one object: s3://bucket/key.")
    return URI("s3", bucket, key, version[1] if version else None)


def _parse_web(text: str) -> URI:
    parts = urlsplit(text)
    if not parts.hostname:
        raise URIError("the host is missing", hint="Write https://host/path.")
    if "@" in parts.netloc:
        hint = "Use a presigned URL, or s3:// with credentials from the AWS chain."
        raise URIError("a URL that carries a user name or password is not read", hint=hint)
    scheme: Literal["http", "https"] = "https" if parts.scheme.lower() == "https" else "http"
    return URI(scheme, parts.netloc, parts.path or "/", None, parts.query)
