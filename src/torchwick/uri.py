"""Where an object is: text parsed once into a frozen `URI`.

Four kinds of text are understood: ``s3://bucket/key`` (with ``?versionId=…``), ``http(s)://host/path``
(public or presigned), ``file:///path``, and a plain local path. One that ends in a slash is a directory.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Literal
from urllib.parse import quote, unquote, urlsplit

from torchwick.errors import URIError

__all__ = ["URI", "parse"]

_S3_ARN = re.compile(
    r"(arn:[\w-]+:s3[\w-]*:[\w-]*:\d*:(?:outpost[/:][\w-]+[/:])?accesspoint[/:][\w.-]+)/(.*)", re.DOTALL
)
_VERSION = re.compile(r"\?versionId=([^&?#]+)$")
_WITH_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # a drive of Windows looks the same
_LONGEST_SHOWN = 200  # characters of a name that is refused


@dataclass(frozen=True)
class URI:
    """The address of one object, or of a directory: of all objects whose keys begin with its own.

    Attributes:
        scheme: ``"s3"``, ``"http"``, ``"https"`` or ``"file"``.
        bucket: the bucket or access-point ARN; for the web ``host[:port]``; empty for a local file.
        key: the object's key as S3 spells it; for the web the path as sent; for a file its path. Of a
            directory it ends in a slash, or is empty: the root of a bucket.
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

    @property
    def is_directory(self) -> bool:
        """Whether it ends in a slash; whether anything is there, only the store can tell."""
        return self.key.endswith("/") or (self.scheme == "s3" and not self.key)

    def as_directory(self) -> URI:
        """Return the directory of this name: the same address with a slash behind it.

        Raises:
            URIError: it has a version or a query, which are of one object.

        Example:
            >>> parse("s3://models/llama").as_directory()
            URI('s3://models/llama/')
        """
        if self.version is not None:
            raise URIError("a version is of one object, not of a directory", uri=self, hint=_NO_VERSION)
        if self.query:
            hint = "Give the address of each object, or s3:// with credentials from the AWS chain."
            raise URIError("a URL's query, such as a signature, is of one object", uri=self, hint=hint)
        return self if self.is_directory else replace(self, key=f"{self.key}/")

    def child(self, name: str) -> URI:
        """Return the object `name` of this directory.

        Args:
            name: relative to the directory, with ``/`` between the names of deeper ones. It may come from a
                file that a stranger wrote.

        Raises:
            URIError: the name would lead out of the directory; or this has a version or a query.

        Example:
            >>> parse("s3://models/llama/").child("model-00001-of-00002.safetensors")
            URI('s3://models/llama/model-00001-of-00002.safetensors')
        """
        directory = self.as_directory()
        if not _stays_inside(name):
            shown = f"{name[:_LONGEST_SHOWN]!r}{'…' * (len(name) > _LONGEST_SHOWN)}"
            hint = "The file that names it is damaged, or was made to reach elsewhere."
            raise URIError(f"{shown} is no name of an object in this directory", uri=directory, hint=hint)
        spelled = quote(name, safe="/!$&'()*+,;=:@~") if self.scheme in ("http", "https") else name
        return replace(directory, key=directory.key + spelled)


_NO_VERSION = "Leave out ?versionId=."


def _stays_inside(name: str) -> bool:
    """Whether it names something in or below a directory, to every store and on every system."""
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        return False
    if "\\" in name or "\0" in name or _WITH_SCHEME.match(name):
        return False
    return not any(segment in ("", ".", "..") for segment in name.split("/"))


def parse(text: str | os.PathLike[str]) -> URI:
    """Parse an address.

    Args:
        text: an S3 URI, a web URL, or a local path.

    Returns:
        The address, taken apart.

    Raises:
        URIError: it is empty, of an unknown scheme, or lacks a bucket or a key; or a directory is given a
            version. The message does not repeat the text, which may carry a signature.

    Example:
        >>> parse("s3://models/new.pt").key
        'new.pt'
        >>> parse("checkpoints/new.pt").scheme
        'file'
        >>> parse("s3://models/llama/").is_directory
        True
    """
    text = os.fspath(text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _parse_path(text)
    match scheme.lower():
        case "s3":
            return _parse_s3(rest)
        case "http" | "https":
            return _parse_web(text)
        case "file":
            return _parse_file(text)
    raise URIError(f"the scheme {scheme!r} is not one torchwick reads", hint=_KINDS)


_KINDS = "Use s3://bucket/key, https://host/path or a local path"


def _parse_path(text: str) -> URI:
    if not text:
        raise URIError("the URI is empty", hint=_KINDS)
    if re.match(r"(s3|https?):/[^/]", text):
        hint = "pathlib.Path folds the two slashes into one; pass the URI as a str"
        raise URIError("the URI has one slash after its scheme where two belong", hint=hint)
    return URI("file", "", text)


def _parse_file(text: str) -> URI:
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost") or not parts.path:
        raise URIError("a file:// URI has to name a file of this machine", hint="Write file:///path")
    return URI("file", "", unquote(parts.path))


def _parse_s3(rest: str) -> URI:
    arn = _S3_ARN.fullmatch(rest)
    bucket, slash, key = (arn[1], "/", arn[2]) if arn else rest.partition("/")
    version = _VERSION.search(key)
    key = key[: version.start()] if version else key
    if not bucket:
        raise URIError("the bucket is missing", hint="Write s3://bucket/key")
    if "@" in bucket:
        raise URIError("credentials do not belong in a URI", hint="Leave them to the AWS chain")
    if not slash:
        hint = "Name one object, s3://bucket/key, or s3://bucket/ for all of it"
        raise URIError(f"the key is missing behind the bucket {bucket!r}", hint=hint)
    uri = URI("s3", bucket, key)
    if version is None:
        return uri
    if uri.is_directory:
        raise URIError("a version is of one object, not of a directory", uri=uri, hint=_NO_VERSION)
    return replace(uri, version=version[1])


def _parse_web(text: str) -> URI:
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise URIError(
            f"the URL's host or port is not one: {error}", hint="Write https://host/path"
        ) from error
    if not host:
        raise URIError("the host is missing", hint="Write https://host/path")
    if "@" in parts.netloc:
        hint = "Use a presigned URL, or s3:// with credentials from the AWS chain"
        raise URIError("a URL that carries a user name or password is not read", hint=hint)
    scheme: Literal["http", "https"] = "https" if parts.scheme.lower() == "https" else "http"
    return URI(scheme, parts.netloc, _escape(parts.path or "/"), None, _escape(parts.query))


def _escape(text: str) -> str:
    """Escape what a URL may not contain, and leave what is escaped already."""
    return quote(text, safe="%/:?@!$&'()*+,;=~[]")
