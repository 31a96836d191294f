"""Holds an answer against the range that was asked for, and against the version that was pinned."""

from __future__ import annotations

import http.client
import re

from torchwick.store.base import ObjectInfo, check_pinned, lying_answer
from torchwick.store.http import HTTPAnswer
from torchwick.uri import URI

__all__ = ["RangeBody", "pinning_headers", "range_header", "ranged_body"]

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class RangeBody:
    """The body of an answer whose head agreed with what was asked for."""

    def __init__(self, answer: HTTPAnswer, info: ObjectInfo, start: int, stop: int | None) -> None:
        self._answer = answer
        self.info = info
        self.start = start
        self.stop = stop

    def readinto(self, buffer: memoryview) -> int:
        """Read into `buffer`; 0 at the end."""
        return self._answer.readinto(buffer)

    def close(self) -> None:
        """Let the connection go on."""
        self._answer.close()


def range_header(start: int, stop: int | None) -> str:
    """Spell a half-open range as HTTP does (RFC 9110, section 14.1.2: last byte included).

    Example:
        >>> range_header(0, 10), range_header(5, None), range_header(-8, None)
        ('bytes=0-9', 'bytes=5-', 'bytes=-8')
    """
    if start < 0:
        return f"bytes={start}"
    return f"bytes={start}-" if stop is None else f"bytes={start}-{stop - 1}"


def pinning_headers(pinned: ObjectInfo | None) -> dict[str, str]:
    """Return headers that make the server refuse any other version; none where nothing tells versions apart.

    A weak tag never matches (RFC 9110, section 13.1.1), so that the date has to do in its place.
    """
    if pinned is None:
        return {}
    if pinned.etag is not None and not pinned.etag.startswith("W/"):
        return {"If-Match": pinned.etag}
    return {"If-Unmodified-Since": pinned.modified} if pinned.modified else {}


def ranged_body(
    uri: URI, answer: HTTPAnswer, start: int, stop: int | None, pinned: ObjectInfo | None
) -> RangeBody:
    """Hold a 2xx answer against its request, before any of its bytes count.

    Raises:
        ObjectChangedError: it speaks of another version than `pinned`.
        StoreError: it is compressed, or another range than the one asked for.
    """
    headers = answer.headers
    if (encoding := headers.get("Content-Encoding", "identity")) not in ("identity", "aws-chunked", ""):
        raise lying_answer(uri, f"the server sent the bytes encoded as {encoding}, though asked not to")
    first: int
    last: int | None
    ranged = answer.status == http.client.PARTIAL_CONTENT
    if ranged:
        first, last, total = _content_range(uri, headers.get("Content-Range", ""))
    else:
        first, last, total = 0, answer.length, answer.length
    info = ObjectInfo(
        uri, total, headers.get("ETag"), headers.get("x-amz-version-id"), headers.get("Last-Modified"), ranged
    )
    if pinned is not None:
        check_pinned(info, pinned)
    if ranged:
        _check_range(uri, (first, last, total), start, stop)
    elif start != 0 and (pinned is None or pinned.ranged):
        raise lying_answer(uri, "the server ignored the range it was asked for")
    return RangeBody(answer, info, first, last)


def _content_range(uri: URI, text: str) -> tuple[int, int, int | None]:
    match = _CONTENT_RANGE.fullmatch(text)
    if match is None:
        raise lying_answer(uri, f"the answer's Content-Range is {text!r}")
    return int(match[1]), int(match[2]) + 1, None if match[3] == "*" else int(match[3])


def _check_range(uri: URI, got: tuple[int, int | None, int | None], start: int, stop: int | None) -> None:
    first, last, total = got
    if total is None:
        raise lying_answer(uri, "the answer does not say how large the object is")
    wanted_first = max(0, total + start) if start < 0 else start
    wanted_last = total if stop is None else min(stop, total)
    if (first, last) != (wanted_first, wanted_last):
        raise lying_answer(
            uri, f"asked for bytes {wanted_first} to {wanted_last}, the answer holds {first} to {last}"
        )
