"""Objects behind plain web addresses: public or presigned, on any server, with ranges or without."""

from __future__ import annotations

import http.client
import os
import ssl
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any
from urllib.parse import urljoin

from torchwick.config import S3Config
from torchwick.errors import (
    AccessDeniedError,
    BusyError,
    ObjectChangedError,
    ObjectNotFoundError,
    StoreError,
)
from torchwick.store.base import Body, EmptyBody, ObjectInfo
from torchwick.store.http import HTTPAnswer
from torchwick.store.line import trusting
from torchwick.store.pool import LinePool, PooledConnection
from torchwick.store.ranged import pinning_headers, range_header, ranged_body
from torchwick.uri import URI, parse

__all__ = ["WebStore"]

_MOST_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)


class WebStore:
    """Objects that a GET of their address returns.

    Args:
        config: only its ``ca_bundle`` matters here (or ``AWS_CA_BUNDLE``); else the system's are trusted.
        timeout: seconds without a byte after which a connection counts as dead.
        secure: whether the addresses are ``https``.
    """

    keeps_checksums = False

    def __init__(self, config: S3Config, timeout: float, *, secure: bool) -> None:
        self._config = config
        self._lines = LinePool(timeout, lambda: self._tls)
        self.secure = secure

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return trusting(self._config.ca_bundle or os.environ.get("AWS_CA_BUNDLE"))

    def connect(self) -> WebConnection:
        """Return a connection of its own for one thread."""
        return WebConnection(self._lines)

    def close(self) -> None:
        """Close idle lines."""
        self._lines.close()


class WebConnection(PooledConnection):
    """One line to a web server."""

    def get(
        self,
        uri: URI,
        start: int,
        stop: int | None,
        pinned: ObjectInfo | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Body:
        """Ask for a range; see `torchwick.store.base.Connection.get`."""
        headers = {"User-Agent": "torchwick"} | pinning_headers(pinned)
        if pinned is None or pinned.ranged:
            headers["Range"] = range_header(start, stop)
        try:
            answer = self._follow(uri, headers, while_waiting)
        except StoreError as error:
            raise error.about(uri) from error.__cause__
        if answer.status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and pinned is None:
            return EmptyBody(ObjectInfo(uri, 0))
        if answer.status not in (http.client.OK, http.client.PARTIAL_CONTENT):
            raise _refusal(uri, answer, pinned)
        body = ranged_body(uri, answer, start, stop, pinned)
        if pinning_headers(body.info):
            return body
        body.info = replace(body.info, ranged=False)  # nothing to pin parts by: one stream
        return body

    def checksum(self, info: ObjectInfo) -> None:
        """Return None: no header for the checksum of a file is common to web servers."""

    def list(self, directory: URI) -> None:
        """Return None: servers that show a directory do so as a page, each in a form of its own."""

    def entries(self, directory: URI) -> None:
        """Return None, as `list` does."""

    def _follow(
        self, uri: URI, headers: dict[str, str], while_waiting: Callable[[], None] | None
    ) -> HTTPAnswer:
        """Send the request, and again where the server points elsewhere. Nothing secret goes along."""
        asked = uri
        for _ in range(_MOST_REDIRECTS):
            answer = self._line.request(_url(asked), headers, while_waiting)
            if answer.status not in _REDIRECTS:
                return answer
            answer.read(1 << 16)
            target = _target(asked, answer.headers.get("Location"))
            if target is None:
                hint = "Give the address that the browser ends up at."
                raise StoreError("the server redirects to what is no web address", uri=uri, hint=hint)
            if (asked.scheme, target.scheme) == ("https", "http"):
                hint = "Give the other address, if you trust the way to it."
                raise StoreError("the server redirects from https to http", uri=uri, hint=hint)
            asked = target
        hint = "Give the address that the browser ends up at."
        raise StoreError(f"the server redirected more than {_MOST_REDIRECTS} times", uri=uri, hint=hint)


def _url(uri: URI) -> str:
    return f"{uri.scheme}://{uri.bucket}{uri.key}" + (f"?{uri.query}" if uri.query else "")


def _target(asked: URI, location: str | None) -> URI | None:
    """Return where a redirect leads, or None where that is no web address."""
    if not location:
        return None
    try:  # headers are Latin-1 to http.client, addresses UTF-8
        spelled = location.encode("latin-1").decode("utf-8", "replace")
        target = parse(urljoin(_url(asked), spelled))
    except ValueError:  # URIError among them
        return None
    return target if target.scheme in ("http", "https") else None


def _refusal(uri: URI, answer: HTTPAnswer, pinned: ObjectInfo | None) -> StoreError:
    status = answer.status
    said = answer.read(4096).decode("utf-8", "replace")
    about: dict[str, Any] = {
        "uri": uri,
        "code": str(status),
        "request_id": answer.headers.get("x-amz-request-id"),
    }
    if status in _BUSY:
        return BusyError(f"the server answered {status}", retry_after=_seconds(answer), **about)
    if status == http.client.PRECONDITION_FAILED or (status == http.client.NOT_FOUND and pinned is not None):
        hint = "Load it again."
        return ObjectChangedError("the object was overwritten while it was being read", hint=hint, **about)
    if status in (http.client.NOT_FOUND, http.client.GONE):
        return ObjectNotFoundError("there is nothing at this address", hint="Check the path.", **about)
    if status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        expired = "expired" in said.lower()
        hint = "Make a new presigned URL." if expired else "Is the URL complete, signature included?"
        return AccessDeniedError(f"the server refused ({status})" + ", expired" * expired, hint=hint, **about)
    return StoreError(f"the server answered {status}", hint="Open the address in a browser.", **about)


def _seconds(answer: HTTPAnswer) -> float | None:
    text = answer.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None
