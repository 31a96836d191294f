"""A small HTTP server for tests: it serves bytes as S3 does, and misbehaves on cue.

    server.put("bucket/model.pt", body)            # served at server.url("bucket/model.pt")
    server.on(Cut(after=1000), nth=1)              # the first GET breaks off after 1000 bytes
    server.on(S3Error(503, "SlowDown"), nth=range(2, 4), where=lambda request: request.range is not None)
    server.requests                                # all it was asked, in order

A rule is a fault (see `faults`) and a condition. Faults that fit the same request all apply, in the order in
which they were added.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.server
import re
import socket
import ssl
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import unquote, urlsplit

from faults import Fault, Instead, Length, Reply, Request, S3Error, Sip, SlowDown, Unread
from faulty_writes import Uploads
from kept import KeptChecksum, keep
from listed import page

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import trustme

Action = Callable[[], object]

PIECE = 64 * 1024  # bytes sent at once
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST instead of FIN
EPOCH = 1_700_000_000.0  # Last-Modified of the first object; each one stored later is a second younger


@dataclass(frozen=True)
class StoredObject:
    body: bytes
    etag: str | None
    modified: float
    headers: Mapping[str, str]
    checksum: KeptChecksum | None = None


@dataclass
class Rule:
    """A fault and when it applies.

    Attributes:
        fault: what goes wrong.
        nth: which of the requests that fit, counted from 1; None for each.
        path: the only path it applies to; None for each.
        method: the only method it applies to; None for each.
        where: a further condition.
        seen: how many requests fitted so far.
    """

    fault: Fault | Action
    nth: int | range | None
    path: str | None
    method: str | None
    where: Callable[[Request], bool]
    seen: int = 0

    def due(self, request: Request) -> bool:
        """Count the request if it fits, and tell whether the fault applies to it."""
        fits = self.path in {None, request.path} and self.method in {None, request.method}
        if not (fits and self.where(request)):
            return False
        self.seen += 1
        if isinstance(self.nth, range):
            return self.seen in self.nth
        return self.nth in {None, self.seen}


class FaultyServer:
    """The server: objects, rules, and a record of what it was asked.

    Attributes:
        requests: every request, in the order of arrival.
        connections: how many connections were opened.
        most_at_once: requests under way beyond which more are answered with SlowDown; None for no limit.
        reset_handshakes: connections, counted from 0, that are reset at the client's first byte: over TLS in
            the handshake.
        ca_file: the certificate authority to trust; None over plain HTTP.
        uploads: what is being uploaded to it in parts, and how it takes that.
    """

    def __init__(
        self,
        *,
        authority: trustme.CA | None = None,
        ca_file: Path | None = None,
        hosts: tuple[str, ...] = ("127.0.0.1", "localhost"),
    ) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.most_at_once: int | None = None
        self.reset_handshakes = range(0)
        self._under_way = 0
        self.ca_file = ca_file
        self.uploads = Uploads()
        self._objects: dict[str, StoredObject] = {}
        self._rules: list[Rule] = []
        self._stored = 0
        self._lock = threading.Lock()
        self._http = _HTTPServer(self, _tls_context(authority, hosts) if authority else None)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="faulty")
        scheme = "https" if authority else "http"
        self.endpoint_url = f"{scheme}://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, breaking off every reply under way; raise what went wrong in the server itself."""
        if self._http.stopping.is_set():
            return
        self._http.stopping.set()
        self._http.shutdown()
        self._thread.join()
        self._http.close_connections()
        self._http.server_close()
        if self._http.errors:
            raise ExceptionGroup("the fault server itself failed", self._http.errors)

    def put(
        self,
        path: str,
        body: bytes,
        *,
        etag: str | None = "md5",
        headers: Mapping[str, str] | None = None,
        checksum: str | None = None,
        uploaded_in: int | None = None,
    ) -> str:
        """Store an object, or overwrite it, and return its URL.

        Args:
            path: bucket/key, or any path.
            body: the bytes.
            etag: the ETag with its quotes; "md5" makes it as S3 does; None sends none.
            headers: further response headers.
            checksum: which one S3 keeps of it, such as "crc64nvme"; None for none.
            uploaded_in: bytes of the parts that it was uploaded in, each of which has a checksum of its own
                (type COMPOSITE); None for one checksum of the whole.
        """
        if etag == "md5":
            etag = f'"{hashlib.md5(body).hexdigest()}"'
        kept = None if checksum is None else keep(checksum, body, uploaded_in)
        with self._lock:
            self._stored += 1
            self._objects[path] = StoredObject(body, etag, EPOCH + self._stored, dict(headers or {}), kept)
        return self.url(path)

    def behave(self) -> None:
        """Forget all rules, and all requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def buffer_little(self) -> None:
        """Have the system take no more ahead of what is read than 64 KiB; for connections to come."""
        self._http.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._http._open)

    def delete(self, path: str) -> None:
        """Forget an object: it is 404 from now on."""
        with self._lock:
            del self._objects[path]

    def url(self, path: str) -> str:
        """Return where the server serves this path."""
        return f"{self.endpoint_url}/{path}"

    def on(
        self,
        fault: Fault | Action,
        *,
        nth: int | range | None = None,
        path: str | None = None,
        method: str | None = "GET",
        where: Callable[[Request], bool] = lambda request: True,
    ) -> None:
        """Add a rule: see `Rule`. A plain callable runs before the request is answered: overwrite, delete…"""
        with self._lock:
            self._rules.append(Rule(fault, nth, path, method, where))

    def environment(self) -> dict[str, str]:
        """Return the AWS_* variables that make an S3 client talk to this server."""
        variables = {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "AKIAFAULTY",
            "AWS_SECRET_ACCESS_KEY": "not-checked",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        return variables if self.ca_file is None else {**variables, "AWS_CA_BUNDLE": str(self.ca_file)}

    @contextmanager
    def admitted(self) -> Iterator[bool]:
        """Count a request as under way, and tell whether it is one of those that are answered."""
        with self._lock:
            self._under_way += 1
            admitted = self.most_at_once is None or self._under_way <= self.most_at_once
        try:
            yield admitted
        finally:
            with self._lock:
                self._under_way -= 1

    def faults_of(self, request: Request) -> list[Fault | Action]:
        """Record a request whose body is still to be read, and return what goes wrong with it."""
        with self._lock:
            self.requests.append(request)
            return [rule.fault for rule in self._rules if rule.due(request)]

    def answer(self, request: Request, faults: Sequence[Fault | Action], *, admitted: bool = True) -> Reply:
        """Make the reply to a request, faults applied."""
        for fault in faults:
            if callable(fault):
                fault()
        reply = Reply(200, {}, b"")
        if not any(isinstance(fault, Instead | Unread) for fault in faults):
            reply = self._honest(request)
        for fault in faults:
            if not callable(fault):
                fault.apply(request, reply)
        if not admitted:
            SlowDown().apply(request, reply)
        return reply

    def content(self, path: str) -> bytes | None:
        """Return the bytes of an object, or None where there is none."""
        stored = self._objects.get(path)
        return None if stored is None else stored.body

    def _honest(self, request: Request) -> Reply:
        with self._lock:
            present = request.path in self._objects
            written, reply = self.uploads.answer(request, present=present)
            if request.method == "DELETE" and reply is None:
                self._objects.pop(request.path, None)
                return Reply(204, {}, b"")
        if written is not None:
            self.put(request.path, written.body, etag=written.etag, checksum=written.checksum)
        if reply is not None:
            return reply
        with self._lock:
            return _listing(request, self._objects) or _honest_reply(request, self._objects.get(request.path))


def _error(request: Request, status: int, code: str, headers: Mapping[str, str] | None = None) -> Reply:
    reply = Reply(status, {}, b"")
    S3Error(status, code, code, headers or {}).apply(request, reply)
    return reply


def _listing(request: Request, objects: Mapping[str, StoredObject]) -> Reply | None:
    """Answer a request for a list of a bucket's objects, or return None where it is another one."""
    if "list-type=2" not in request.query.split("&") or request.path in objects:
        return None
    bucket = f"{request.path.rstrip('/')}/"
    found = {
        path.removeprefix(bucket): (len(stored.body), stored.etag)
        for path, stored in objects.items()
        if path.startswith(bucket)
    }
    return Reply(200, {"Content-Type": "application/xml"}, page(request.query, found))


def _honest_reply(request: Request, stored: StoredObject | None) -> Reply:
    """Answer as S3 would."""
    if stored is None:
        return _error(request, 404, "NoSuchKey")
    if not _conditions_hold(request, stored):
        return _error(request, 412, "PreconditionFailed")
    size = len(stored.body)
    headers = {
        "Accept-Ranges": "bytes",
        "Content-Type": "binary/octet-stream",
        "Last-Modified": formatdate(stored.modified, usegmt=True),
        **stored.headers,
    }
    if stored.etag is not None:
        headers["ETag"] = stored.etag
    if stored.checksum is not None and request.query.partition("&")[0] == "attributes":
        return Reply(200, headers, stored.checksum.attributes(request.headers, stored.etag or ""))
    if stored.checksum is not None and request.headers.get("x-amz-checksum-mode") == "ENABLED":
        headers |= stored.checksum.headers
    if request.range is None:
        return Reply(200, headers, stored.body, whole=stored.body)
    start, stop = _resolve(request.range, size)
    if start >= min(stop, size):
        return _error(request, 416, "InvalidRange", {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {start}-{min(stop, size) - 1}/{size}"
    return Reply(206, headers, stored.body[start:stop], start=start, whole=stored.body)


def _conditions_hold(request: Request, stored: StoredObject) -> bool:
    wanted = request.headers.get("if-match")
    if wanted is not None and wanted != "*":
        strong = stored.etag is not None and not stored.etag.startswith("W/")
        return strong and stored.etag in [tag.strip() for tag in wanted.split(",")]
    since = request.headers.get("if-unmodified-since")
    return since is None or stored.modified <= parsedate_to_datetime(since).timestamp()


def _parse_range(header: str | None) -> tuple[int, int | None] | None:
    """Parse "bytes=2-5", "bytes=2-", or "bytes=-3", whose start comes back negative."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if match is None or match[0] == "bytes=-":
        return None
    if not match[1]:
        return -int(match[2]), None
    return int(match[1]), int(match[2]) + 1 if match[2] else None


def _resolve(wanted: tuple[int, int | None], size: int) -> tuple[int, int]:
    start, stop = wanted
    return (start if start >= 0 else max(0, size + start)), size if stop is None else stop


def _tls_context(authority: trustme.CA, hosts: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*hosts).configure_cert(context)
    return context


class _HTTPServer(http.server.ThreadingHTTPServer):
    """One thread a connection; all of them end in `close_connections` and `server_close`."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, owner: FaultyServer, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owner = owner
        self.stopping = threading.Event()
        self.errors: list[Exception] = []
        self._tls = tls
        self._open: dict[socket.socket, int] = {}

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake waits for the first read, in the connection's own thread.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._open[connection] = self.owner.connections
        self.owner.connections += 1
        return connection, address

    def number_of(self, connection: socket.socket) -> int:
        """Return which connection this is, counted from 0."""
        return self._open[connection]

    def shutdown_request(self, request: Any) -> None:
        self._open.pop(request, None)
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(RESET)) == RESET:
            request.close()  # without shutdown(), which would send FIN before the RST
        else:
            super().shutdown_request(request)

    def close_connections(self) -> None:
        """Wake every thread that waits for its client."""
        for connection in list(self._open):
            try:
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            except OSError:
                continue  # already closed by its client

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exception()
        # A client that goes away in the middle is what many tests are about.
        if isinstance(error, Exception) and not isinstance(error, OSError):
            self.errors.append(error)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Puts replies on the wire."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self._server = cast("_HTTPServer", self.server)
        self._number = self._server.number_of(self.connection)

    def handle(self) -> None:
        if self._number not in self._server.owner.reset_handshakes:
            super().handle()
        else:
            socket.socket.recv(self.connection, 1)  # of the bytes as they come, encrypted or not
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            method=self.command,
            path=unquote(url.path.lstrip("/")),
            query=url.query,
            headers=headers,
            range=_parse_range(headers.get("range")),
            connection=self._number,
        )
        owner = self._server.owner
        with owner.admitted() as admitted:
            faults = owner.faults_of(request)
            body = self._read(faults)
            self._send(owner.answer(replace(request, body=body), faults, admitted=admitted))

    def _read(self, faults: Sequence[Fault | Action]) -> bytes:
        """Read the body of the request, or only its beginning."""
        size = int(self.headers.get("Content-Length", 0))
        unread = [fault for fault in faults if isinstance(fault, Unread)]
        if unread:
            self.rfile.read(min(size, unread[0].after))
            self.close_connection = True
            return b""
        sips = [fault for fault in faults if isinstance(fault, Sip)]
        body = self._sip(size, sips[0]) if sips else self.rfile.read(size)
        if len(body) < size:
            raise ConnectionResetError("the client went away")
        return body

    def _sip(self, size: int, sip: Sip) -> bytes:
        body = bytearray()
        while len(body) < size and (piece := self.rfile.read(min(sip.size, size - len(body)))):
            body += piece
            self._server.stopping.wait(sip.every)
        return bytes(body)

    def _send(self, reply: Reply) -> None:
        if reply.lost:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        if reply.stall_after == -1:
            self._stall()
            return
        self._send_headers(reply)
        if self.command != "HEAD":
            self._send_body(reply)

    def _send_headers(self, reply: Reply) -> None:
        self.send_response_only(reply.status, _reason(reply.status))
        if "Date" not in reply.headers:
            self.send_header("Date", self.date_time_string())
        self.send_header("x-amz-request-id", "FAULTY")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.length == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif reply.length == "content-length":
            if "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(reply.body)))
        else:
            self.send_header("Connection", "close")  # which makes http.server close it afterwards
        self.end_headers()

    def _send_body(self, reply: Reply) -> None:
        stops = [stop for stop in (reply.cut_after, reply.stall_after, reply.truncate_at) if stop is not None]
        body = memoryview(reply.body)[: min(stops)] if stops else memoryview(reply.body)
        size, pause = reply.trickle or (PIECE, 0.0)
        for start in range(0, len(body), size):
            self._send_piece(body[start : start + size], reply.length)
            if pause and self._server.stopping.wait(pause):
                break
        if not stops:
            if reply.length == "chunked":
                self.wfile.write(b"0\r\n\r\n")
        elif min(stops) == reply.stall_after:
            self._stall()
        else:
            self._end_early(reset=min(stops) == reply.cut_after)

    def _send_piece(self, piece: memoryview, length: Length) -> None:
        if length == "chunked":
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), bytes(piece)))
        else:
            self.wfile.write(piece)

    def _stall(self) -> None:
        self._server.stopping.wait()
        self.close_connection = True

    def _end_early(self, *, reset: bool) -> None:
        self.close_connection = True
        if reset:
            self._wait_until_sent()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def _wait_until_sent(self) -> None:
        """Wait until the client's machine has all bytes: a reset throws away those still on their way."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and not self._server.stopping.wait(0.001):
            queued = fcntl.ioctl(self.connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
            if struct.unpack("i", queued) == (0,):
                return


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
