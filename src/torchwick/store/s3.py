"""The control plane of S3: botocore finds credentials, region and endpoint, and signs; our line reads.

A handler on botocore's public event ``before-send.s3.GetObject`` receives a request complete and signed,
sends it over a `Line`, and returns the answer with its body unread. Endpoint rules, credential renewal, S3
Express sessions and the parsing of errors stay botocore's.

The range and the ETag are added after signing: S3 wants only the host and its own ``x-amz-`` headers signed
(Amazon S3 API reference, "Authenticating Requests"). So one signature serves all parts of an object for a
minute, where signing each would cost 0.6 ms of the interpreter lock a part, and nothing secret ever stands in
a URL.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError

from torchwick.config import S3Config
from torchwick.errors import CredentialsError, StoreError
from torchwick.store.base import Body, EmptyBody, ObjectInfo, StoredChecksum, check_pinned
from torchwick.store.botocore_errors import endless_redirect, endpoint_refused, from_botocore, not_s3
from torchwick.store.collector import collector_paused
from torchwick.store.finder import CredentialFinder
from torchwick.store.http import Headers, HTTPAnswer
from torchwick.store.identity import searched
from torchwick.store.line import Line, trusting
from torchwick.store.lookaround import why_denied, why_missing
from torchwick.store.pool import LinePool, PooledConnection
from torchwick.store.ranged import pinning_headers, range_header, ranged_body
from torchwick.store.redact import redacted_logs
from torchwick.store.s3_checksum import checksum_of_parts, checksum_of_whole, is_composite
from torchwick.store.s3_client import customer_key, make_client, make_session, trusted_bundle
from torchwick.store.s3_errors import Refusal, about_objects, read_refusal
from torchwick.uri import URI

__all__ = ["S3Store"]

_GOOD = (200, 206)
_REDIRECTS = (301, 302, 307)
_SECRET_HEADERS = (
    "authorization",
    "x-amz-s3session-token",
    "x-amz-security-token",
    "x-amz-server-side-encryption-customer-key",
)
_NOT_PUBLIC = "The object is not public: leave out anonymous=True, so that requests are signed."
_OTHER_KEY = "Check that the object was stored with the key in S3Config.sse_customer_key."
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_MOST_PARTS = 10_000  # Amazon S3 user guide, "Amazon S3 multipart upload limits"
_LONGEST_PAGE = 4 << 20  # bytes of a list of 1000 parts, ten times over
_SIGNATURE_LIFE = 60.0  # seconds; S3 refuses a signature after 15 minutes, Express sessions end after 5


@dataclass(frozen=True)
class _Signed:
    """A request as botocore signed it, but for the headers that vary from part to part."""

    url: str
    headers: dict[str, str] = field(repr=False)  # the signature and the session token are among them
    since: float

    @property
    def fresh(self) -> bool:
        return time.monotonic() - self.since < _SIGNATURE_LIFE


class S3Store:
    """Objects in S3, as one set of credentials sees them.

    Args:
        config: who asks, and which S3.
        timeout: seconds without a byte after which a connection counts as dead.
    """

    keeps_checksums = True

    def __init__(self, config: S3Config, timeout: float) -> None:
        self._config = config
        self._timeout = timeout
        self._takes_conditions = True
        self._finder = CredentialFinder(config)
        self._asked_as = "nobody yet"
        self._signed: dict[URI, _Signed] = {}
        self._current = _Current()
        self._lines = LinePool(timeout, lambda: self._tls)

    @property
    def secure(self) -> bool:
        """Whether the endpoint is reached over TLS."""
        return str(self.client.meta.endpoint_url).startswith("https:")

    @cached_property
    def session(self) -> botocore.session.Session:
        """The session of botocore, which knows who asks.

        Raises:
            BotoCoreError: the AWS configuration cannot be read.
        """
        return make_session(self._config, self._timeout)

    @cached_property
    def client(self) -> Any:
        """The client of botocore, whose GetObject goes over the line of the exchange under way.

        Raises:
            BotoCoreError: credentials, region or endpoint cannot be used.
            StoreError: it would send a customer's key over a line that others can read.
        """
        with collector_paused():
            client = make_client(self.session, self._config)
        endpoint = str(client.meta.endpoint_url)
        if self._config.sse_customer_key is not None and not _private(endpoint):
            hint = "Give the endpoint as https://host."
            raise StoreError("S3Config.sse_customer_key is not sent over plain HTTP", hint=hint)
        for operation in (_GET, _HEAD, _PARTS):
            client.meta.events.register(f"before-send.s3.{operation.name}", self._send)
        return client

    def _forget(self, client: Any) -> None:
        """Look for credentials afresh at the next request, unless another thread has done so already."""
        if self.__dict__.get("client") is client:
            self._signed.clear()
            self.__dict__.pop("client", None)
            self.__dict__.pop("session", None)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Trust what botocore trusts."""
        return trusting(trusted_bundle(self.session, self._config))

    def connect(self) -> S3Connection:
        """Return a connection of its own for one thread."""
        return S3Connection(self, self._lines)

    def pinning_headers(self, pinned: ObjectInfo | None) -> dict[str, str]:
        """Return the headers that make the store refuse any other version, if it knows them."""
        return pinning_headers(pinned) if self._takes_conditions else {}

    def drop_conditions(self) -> bool:
        """Ask without conditions from now on, and return whether they were asked with until now.

        Some stores answer ``NotImplemented`` to a conditional read. The tag in each answer is compared in any
        case; the condition only spares the bytes of a version that is not wanted.
        """
        dropped, self._takes_conditions = self._takes_conditions, False
        return dropped

    def send(self, exchange: _Exchange) -> HTTPAnswer:
        """Send a request, and return the answer unread.

        Raises:
            StoreError: S3 refused, or no request could be made.
        """
        known_client = self.__dict__.get("client")
        try:
            return self._repeat(exchange) or self._ask(exchange)
        except CredentialsError:
            if known_client is None:
                raise
        # The credentials were found some time ago: they may have been renewed or replaced since.
        self._forget(known_client)
        return self._ask(exchange)

    def _repeat(self, exchange: _Exchange) -> HTTPAnswer | None:
        """Send a request signed already, if there is one; None if a new one has to be made.

        Raises:
            StoreError: S3 refused.
        """
        signed = self._signed.get(exchange.uri)
        if exchange.operation is not _GET or signed is None or not signed.fresh:
            return None
        answer = exchange.send(signed.url, signed.headers)
        if answer.status in _GOOD:
            return answer
        if answer.status in _REDIRECTS:
            self._signed.pop(exchange.uri, None)
            return None
        try:
            parsed = read_refusal(self.session, self.client, answer)
        except ResponseParserError:
            raise not_s3(exchange.uri) from None
        raise self._explained(parsed, exchange)

    @redacted_logs()
    def _ask(self, exchange: _Exchange) -> HTTPAnswer:
        """Have botocore make and sign a request, and send it.

        Errors come without the frames of botocore, whose locals hold signatures, tokens and keys, and
        refusals without botocore's error, which may repeat what was sent.
        """
        uri = exchange.uri
        try:
            self._asked_as = self._finder.find(self.session, exchange.line, exchange.since)
            self._current.exchange = exchange
            call = getattr(self.client, exchange.operation.call)
            exchange.told = call(**self._arguments(uri), **exchange.operation.arguments, **exchange.arguments)
        except ClientError as error:
            raise self._explained(error, exchange) from None
        except BotoCoreError as error:
            places = searched(self.session) if isinstance(error, NoCredentialsError) else ""
            self._forget(self.__dict__.get("client"))
            raise from_botocore(error, uri, places) from error.with_traceback(None)
        except ResponseParserError as error:
            raise not_s3(uri) from error.with_traceback(None)
        except RecursionError:  # a redirect that names no region has botocore ask for it, redirected again
            raise endless_redirect(uri) from None
        except (OSError, HTTPException) as error:
            raise error.with_traceback(None) from None
        except ValueError as error:  # how botocore refuses an endpoint; some of the network's are these too
            raise endpoint_refused(error, uri) from error.with_traceback(None)
        finally:
            self._current.exchange = None
        return exchange.answer

    def _arguments(self, uri: URI) -> dict[str, Any]:
        arguments = {"Bucket": uri.bucket, "Key": uri.key} | customer_key(self._config)
        if uri.version is not None:
            arguments["VersionId"] = uri.version
        if self._config.requester_pays:
            arguments["RequestPayer"] = "requester"
        return arguments

    def _explained(self, error: ClientError, exchange: _Exchange) -> StoreError:
        """Say what a refusal means, with what else the store tells of the reason."""
        uri = exchange.uri
        # The refusal of a role says which, not as whom its credentials were to be.
        asked_as = self._asked_as if about_objects(error) else self._config.role_arn or "the profile's role"
        refusal = Refusal(error, uri, asked_as, exchange.secrets)
        if exchange.pinned:
            return refusal.explained(pinned=True)
        return refusal.explained(look_around=lambda: self._reason(refusal.meaning, uri))

    def _reason(self, meaning: str, uri: URI) -> str | None:
        if meaning == "NoSuchKey":
            return why_missing(self.client, uri)
        if meaning == "AccessDenied":
            known = (
                _NOT_PUBLIC
                if self._config.anonymous
                else _OTHER_KEY
                if self._config.sse_customer_key
                else None
            )
            return known or why_denied(self.client, uri)
        return None

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse | None:
        """Stand in for botocore's own sending, or leave it to that where no line waits for the answer."""
        exchange = self._current.exchange
        if exchange is None:
            return None
        headers = Headers(
            {
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in request.headers.items()
            }
        )
        answer = exchange.send(request.url, headers)
        if exchange.operation is _PARTS and (answer.length or 0) > _LONGEST_PAGE:
            raise not_s3(exchange.uri)  # it sends the object itself, not knowing what was asked for
        if exchange.operation is _GET and answer.status in _GOOD:
            self._remember(exchange.uri, _Signed(request.url, headers, time.monotonic()))
        return AWSResponse(request.url, answer.status, answer.headers, answer)

    def _remember(self, uri: URI, signed: _Signed) -> None:
        for known, old in list(self._signed.items()):
            if not old.fresh:
                self._signed.pop(known, None)
        self._signed[uri] = signed


@dataclass(frozen=True)
class _Operation:
    """One of S3's operations that travel over a line.

    Attributes:
        name: S3's name for it.
        call: botocore's.
        method: HTTP's.
        arguments: what it is always told.
    """

    name: str
    call: str
    method: str = "GET"
    arguments: dict[str, Any] = field(default_factory=dict)


_GET = _Operation("GetObject", "get_object")
_HEAD = _Operation("HeadObject", "head_object", "HEAD", {"ChecksumMode": "ENABLED"})
_PARTS = _Operation(
    "GetObjectAttributes", "get_object_attributes", arguments={"ObjectAttributes": ["ETag", "ObjectParts"]}
)


@dataclass(repr=False)
class _Exchange:
    """A request under way and its answer, known to this thread on both sides of botocore."""

    operation: _Operation
    uri: URI
    line: Line
    since: float
    """When the load began that this is for."""
    conditions: dict[str, str] = field(default_factory=dict)
    """Headers that S3 does not want signed: the range, the version."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """What the operation is told besides the object."""
    while_waiting: Callable[[], None] | None = None
    told: dict[str, Any] = field(default_factory=dict)
    """What botocore made of the answer, if it read it."""
    answer: HTTPAnswer = field(init=False)
    secrets: tuple[str, ...] = ()
    """What was sent and must not be repeated, should the answer repeat it."""

    @property
    def pinned(self) -> bool:
        """Whether the object has been seen before, in a version that is asked for again."""
        conditional = not self.conditions.keys().isdisjoint(("If-Match", "If-Unmodified-Since"))
        return conditional or self.operation is _PARTS  # which is asked for last

    def send(self, url: str, signed_headers: dict[str, str]) -> HTTPAnswer:
        self.secrets = tuple(v for k, v in signed_headers.items() if k.lower() in _SECRET_HEADERS)
        headers = Headers(signed_headers | self.conditions)
        self.answer = self.line.request(url, headers, self.while_waiting, method=self.operation.method)
        return self.answer


class _Current(threading.local):
    exchange: _Exchange | None = None


def _private(endpoint: str) -> bool:
    """Whether no one on the way can read what is sent there."""
    parts = urlsplit(endpoint)
    return parts.scheme == "https" or parts.hostname in _THIS_MACHINE


def _check_tag(tag: str | None, info: ObjectInfo) -> None:
    """Refuse an answer about another version; GetObjectAttributes takes no condition, and leaves out quotes.

    Raises:
        ObjectChangedError: its tag is another.
    """
    if tag is not None and info.etag is not None:
        check_pinned(replace(info, etag=tag.strip('"')), replace(info, etag=info.etag.strip('"')))


class S3Connection(PooledConnection):
    """One line to S3."""

    def __init__(self, store: S3Store, pool: LinePool) -> None:
        super().__init__(pool)
        self._store = store
        self._since = time.monotonic()

    def get(
        self,
        uri: URI,
        start: int,
        stop: int | None,
        pinned: ObjectInfo | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Body:
        """Ask for a range; see `torchwick.store.base.Connection.get`."""
        conditions = self._store.pinning_headers(pinned)
        if pinned is None or pinned.ranged:
            conditions["Range"] = range_header(start, stop)
        try:
            answer = self._store.send(self._exchange(_GET, uri, conditions, while_waiting=while_waiting))
        except StoreError as error:
            if pinned is None and error.code in ("InvalidRange", "416"):  # of no bytes, none can be had
                return EmptyBody(ObjectInfo(uri, 0))
            if error.code == "NotImplemented" and self._store.drop_conditions():
                return self.get(uri, start, stop, pinned)
            raise error.about(uri) from error.__cause__
        return ranged_body(uri, answer, start, stop, pinned)

    def checksum(self, info: ObjectInfo) -> StoredChecksum | None:
        """Return S3's checksum of the whole, else those of the parts; see `torchwick.store.base`."""
        conditions = self._store.pinning_headers(info)
        try:
            answer = self._store.send(self._exchange(_HEAD, info.uri, conditions))
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if is_composite(headers):
                return checksum_of_parts(self._parts(info), info.size or 0)
        except StoreError as error:
            raise error.about(info.uri) from error.__cause__
        return checksum_of_whole(headers, info.size or 0)

    def _parts(self, info: ObjectInfo) -> list[dict[str, Any]]:
        """Return the parts that an object was uploaded in, or some of them where the store tells no more.

        Raises:
            ObjectChangedError: they are another version's.
        """
        parts: list[dict[str, Any]] = []
        before, marker = -1, 0
        while before < marker <= _MOST_PARTS:  # a page that leads nowhere would be asked for without end
            exchange = self._exchange(_PARTS, info.uri, {}, PartNumberMarker=marker)
            self._store.send(exchange)
            _check_tag(exchange.told.get("ETag"), info)
            page = exchange.told.get("ObjectParts", {})
            parts += page.get("Parts", [])
            before, marker = marker, page.get("NextPartNumberMarker", 0) if page.get("IsTruncated") else 0
        return parts

    def _exchange(
        self,
        operation: _Operation,
        uri: URI,
        conditions: dict[str, str],
        while_waiting: Callable[[], None] | None = None,
        **arguments: Any,
    ) -> _Exchange:
        return _Exchange(operation, uri, self._line, self._since, conditions, arguments, while_waiting)
