"""What can go wrong with an HTTP reply: each fault is a small class that changes it before it is sent."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

Length = Literal["content-length", "chunked", "until-close"]


@dataclass(frozen=True)
class Request:
    """One request as it arrived.

    Attributes:
        method: "GET", "HEAD", "POST", "PUT" or "DELETE".
        path: decoded, without the leading slash and the query.
        query: the part after "?", undecoded.
        headers: by lower-case name.
        range: half-open byte range asked for, with the open end of "bytes=5-" as None; None without one.
        connection: which connection it came over, counted from 0.
        body: what came with it; of a body that was not read, nothing.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    range: tuple[int, int | None] | None
    connection: int
    body: bytes = field(default=b"", repr=False)


@dataclass
class Reply:
    """What goes over the wire; faults change it.

    Attributes:
        start: offset in the object of the body's first byte.
        whole: the whole object's bytes; empty in errors.
        length: how the client learns where the body ends.
        truncate_at: bytes of the body after which the connection is closed in good order.
        cut_after: bytes of the body after which the connection is reset.
        stall_after: bytes of the body after which nothing more comes; -1 withholds the headers too.
        trickle: bytes in each piece, and seconds between two pieces.
        lost: whether the connection is reset in place of the reply.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    start: int = 0
    whole: bytes = b""
    length: Length = "content-length"
    truncate_at: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    trickle: tuple[int, float] | None = None
    lost: bool = False


class Fault(Protocol):
    """Something that goes wrong with a reply."""

    def apply(self, request: Request, reply: Reply) -> None: ...


@dataclass(frozen=True)
class Cut:
    """Reset the connection after so many bytes of the body."""

    after: int

    def apply(self, request: Request, reply: Reply) -> None:
        reply.cut_after = self.after


@dataclass(frozen=True)
class Truncate:
    """Close the connection in good order after so many bytes of the body."""

    after: int

    def apply(self, request: Request, reply: Reply) -> None:
        reply.truncate_at = self.after


@dataclass(frozen=True)
class Stall:
    """Fall silent after so many bytes of the body, the connection left open; -1: before the headers."""

    after: int

    def apply(self, request: Request, reply: Reply) -> None:
        reply.stall_after = self.after


@dataclass(frozen=True)
class Trickle:
    """Send the body in pieces of `size` bytes, `every` so many seconds."""

    size: int
    every: float

    def apply(self, request: Request, reply: Reply) -> None:
        reply.trickle = (self.size, self.every)


@dataclass(frozen=True)
class S3Error:
    """Answer with an error as S3 words it."""

    status: int
    code: str
    message: str = "The test asked for this error."
    headers: Mapping[str, str] = field(default_factory=dict)

    def apply(self, request: Request, reply: Reply) -> None:
        body = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{escape(self.code)}</Code><Message>{escape(self.message)}</Message>"
            f"<Resource>/{escape(request.path)}</Resource><RequestId>FAULTY</RequestId></Error>"
        ).encode()
        _become(reply, self.status, {"Content-Type": "application/xml", **self.headers}, body)


@dataclass(frozen=True)
class SlowDown:
    """Throttle as S3 does, and ask to be left alone for so many seconds if that is not None."""

    retry_after: int | None = None

    def apply(self, request: Request, reply: Reply) -> None:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        S3Error(503, "SlowDown", "Please reduce your request rate.", headers).apply(request, reply)


@dataclass(frozen=True)
class Answer:
    """Answer with this status, headers and body, such as a proxy's page."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    def apply(self, request: Request, reply: Reply) -> None:
        _become(reply, self.status, dict(self.headers), self.body)


@dataclass(frozen=True)
class Redirect:
    """Send the client to another URL."""

    location: str
    status: int = 307

    def apply(self, request: Request, reply: Reply) -> None:
        _become(reply, self.status, {"Location": self.location}, b"")


@dataclass(frozen=True)
class IgnoreRange:
    """Answer a ranged request with 200 and the whole object."""

    length: Length = "content-length"

    def apply(self, request: Request, reply: Reply) -> None:
        reply.status, reply.body, reply.start, reply.length = 200, reply.whole, 0, self.length
        reply.headers.pop("Content-Range", None)
        reply.headers.pop("Accept-Ranges", None)


@dataclass(frozen=True)
class Framing:
    """Tell the end of the body in another way than by Content-Length."""

    length: Length

    def apply(self, request: Request, reply: Reply) -> None:
        reply.length = self.length


@dataclass(frozen=True)
class ShiftRange:
    """Send, and declare, bytes that begin `by` bytes further on than was asked."""

    by: int = 1

    def apply(self, request: Request, reply: Reply) -> None:
        start, stop = reply.start + self.by, reply.start + self.by + len(reply.body)
        reply.start, reply.body = start, reply.whole[start:stop]
        reply.headers["Content-Range"] = f"bytes {start}-{start + len(reply.body) - 1}/{len(reply.whole)}"


@dataclass(frozen=True)
class WrongTotal:
    """Declare another size of the whole object in Content-Range."""

    total: int

    def apply(self, request: Request, reply: Reply) -> None:
        declared, of, _ = reply.headers.get("Content-Range", "").partition("/")
        if of:  # another fault may have made it an answer without
            reply.headers["Content-Range"] = f"{declared}/{self.total}"


@dataclass(frozen=True)
class FlipByte:
    """Invert one byte of the object on its way, where the reply holds it."""

    at: int

    def apply(self, request: Request, reply: Reply) -> None:
        index = self.at - reply.start
        if 0 <= index < len(reply.body):
            flipped = bytes([reply.body[index] ^ 0xFF])
            reply.body = reply.body[:index] + flipped + reply.body[index + 1 :]


@dataclass(frozen=True)
class SetHeaders:
    """Set response headers, or leave out those given as None: a weak ETag, or none."""

    headers: Mapping[str, str | None]

    def apply(self, request: Request, reply: Reply) -> None:
        for name, value in self.headers.items():
            if value is None:
                reply.headers.pop(name, None)
            else:
                reply.headers[name] = value


@dataclass(frozen=True)
class WrongETag:
    """Speak of another version than the one whose bytes are sent."""

    etag: str = '"another"'

    def apply(self, request: Request, reply: Reply) -> None:
        reply.headers["ETag"] = self.etag


@dataclass(frozen=True)
class ErrorInSuccess:
    """Answer 200, and an error as S3 words it in place of the bytes, as some gateways do."""

    code: str = "InternalError"

    def apply(self, request: Request, reply: Reply) -> None:
        S3Error(200, self.code).apply(request, reply)


@dataclass(frozen=True)
class Gzip:
    """Compress the body, and say so."""

    def apply(self, request: Request, reply: Reply) -> None:
        reply.body = gzip.compress(reply.body)
        reply.headers["Content-Encoding"] = "gzip"


@dataclass(frozen=True)
class Lost:
    """Do what was asked, and reset the connection in place of the answer."""

    def apply(self, request: Request, reply: Reply) -> None:
        reply.lost = True


@dataclass(frozen=True)
class Instead:
    """Do nothing of what was asked, and answer with a fault."""

    fault: Fault

    def apply(self, request: Request, reply: Reply) -> None:
        self.fault.apply(request, reply)


@dataclass(frozen=True)
class Prefix:
    """Send white space before the body, as S3 does while it puts parts together."""

    text: bytes = b"   \n  "

    def apply(self, request: Request, reply: Reply) -> None:
        reply.body = self.text + reply.body


@dataclass(frozen=True)
class Unread:
    """Read only so many bytes of a request's body, do nothing, and then answer, reset or stall."""

    after: int
    then: Fault | Literal["reset", "stall"]

    def apply(self, request: Request, reply: Reply) -> None:
        if self.then == "reset":
            reply.lost = True
        elif self.then == "stall":
            reply.stall_after = -1
        else:
            self.then.apply(request, reply)


@dataclass(frozen=True)
class Sip:
    """Read a request's body in pieces of `size` bytes, `every` so many seconds."""

    size: int
    every: float

    def apply(self, request: Request, reply: Reply) -> None:
        """Leave the reply alone."""


def _become(reply: Reply, status: int, headers: dict[str, str], body: bytes) -> None:
    reply.status, reply.headers, reply.body, reply.whole = status, headers, body, b""
    reply.length = "content-length"
