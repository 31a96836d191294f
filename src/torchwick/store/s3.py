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
from torchwick.store.base import Body, EmptyBody, ObjectInfo, StoredChecksum
from torchwick.store.botocore_errors import endless_redirect, endpoint_refused, from_botocore, not_s3
from torchwick.store.collector import collector_paused
from torchwick.store.finder import CredentialFinder
from torchwick.store.http import Headers, HTTPAnswer
from torchwick.store.identity import searched
from torchwick.store.line import trusting
from torchwick.store.lookaround import why_denied, why_missing
from torchwick.store.pool import LinePool, PooledConnection
from torchwick.store.ranged import pinning_headers, range_header, ranged_body
from torchwick.store.redact import redacted_logs
from torchwick.store.s3_checksum import checksum_of_parts, checksum_of_whole, is_composite
from torchwick.store.s3_client import customer_key, make_client, make_session, trusted_bundle
from torchwick.store.s3_errors import Refusal, about_objects, read_refusal
from torchwick.store.s3_exchange import GET_OBJECT, HEAD_OBJECT, LIST_PARTS, Exchange, Operation, Signed
from torchwick.uri import URI

__all__ = ["S3Store"]

_GOOD = (200, 206)
_REDIRECTS = (301, 302, 307)
_NOT_PUBLIC = "The object is not public: leave out anonymous=True, so that requests are signed."
_OTHER_KEY = "Check that the object was stored with the key in S3Config.sse_customer_key."
_MOST_PARTS = 10_000  # of an upload (Amazon S3 user guide, "Multipart upload limits")
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


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
        self._signed: dict[URI, Signed] = {}
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
        for operation in (GET_OBJECT, HEAD_OBJECT, LIST_PARTS):
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

    def close(self) -> None:
        """Close idle lines."""
        self._lines.close()

    def pinning_headers(self, pinned: ObjectInfo | None) -> dict[str, str]:
        """Return the headers that make the store refuse any other version, if it knows them."""
        return pinning_headers(pinned) if self._takes_conditions else {}

    def drop_conditions(self) -> None:
        """Ask without conditions from now on.

        Some stores answer ``NotImplemented`` to a conditional read. The tag in each answer is compared in any
        case; the condition only spares the bytes of a version that is not wanted.
        """
        self._takes_conditions = False

    def send(self, exchange: Exchange) -> HTTPAnswer:
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

    def _repeat(self, exchange: Exchange) -> HTTPAnswer | None:
        """Send a request signed already, if there is one; None if a new one has to be made.

        Raises:
            StoreError: S3 refused.
        """
        signed = self._signed.get(exchange.uri)
        if exchange.operation is not GET_OBJECT or signed is None or not signed.fresh:
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
    def _ask(self, exchange: Exchange) -> HTTPAnswer:
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

    def _explained(self, error: ClientError, exchange: Exchange) -> StoreError:
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
            return self._setting_to_check or why_denied(self.client, uri)
        return None

    @property
    def _setting_to_check(self) -> str | None:
        if self._config.anonymous:
            return _NOT_PUBLIC
        return _OTHER_KEY if self._config.sse_customer_key else None

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
        if exchange.operation is GET_OBJECT and answer.status in _GOOD:
            self._remember(exchange.uri, Signed(request.url, headers, time.monotonic()))
        return AWSResponse(request.url, answer.status, answer.headers, answer)

    def _remember(self, uri: URI, signed: Signed) -> None:
        for known, old in list(self._signed.items()):
            if not old.fresh:
                self._signed.pop(known, None)
        self._signed[uri] = signed


class _Current(threading.local):
    exchange: Exchange | None = None


def _private(endpoint: str) -> bool:
    """Whether no one on the way can read what is sent there."""
    parts = urlsplit(endpoint)
    return parts.scheme == "https" or parts.hostname in _THIS_MACHINE


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
        pins = self._store.pinning_headers(pinned)
        wanted = {"Range": range_header(start, stop)} if pinned is None or pinned.ranged else {}
        exchange = self._exchange(GET_OBJECT, uri, pinned)
        exchange.conditions, exchange.while_waiting = pins | wanted, while_waiting
        try:
            answer = self._store.send(exchange)
        except StoreError as error:
            if pinned is None and error.code in ("InvalidRange", "416"):  # of no bytes, none can be had
                return EmptyBody(ObjectInfo(uri, 0))
            if pins and error.code == "NotImplemented":
                self._store.drop_conditions()
                return self.get(uri, start, stop, pinned)
            raise error.about(uri) from error.__cause__
        return ranged_body(uri, answer, start, stop, pinned)

    def checksum(self, info: ObjectInfo) -> StoredChecksum | None:
        """Return S3's checksum of the whole, else those of the parts; see `torchwick.store.base`."""
        exchange = self._exchange(HEAD_OBJECT, info.uri, info)
        exchange.conditions = self._store.pinning_headers(info)
        try:
            answer = self._store.send(exchange)
            headers = {name.lower(): value for name, value in answer.headers.items()}
            if is_composite(headers):
                return checksum_of_parts(self._parts(info), info.size or 0)
        except StoreError as error:
            raise error.about(info.uri) from error.__cause__
        return checksum_of_whole(headers, info.size or 0)

    def _parts(self, info: ObjectInfo) -> list[dict[str, Any]]:
        """Return the parts that this version was uploaded in; none where the list is of another version."""
        parts: list[dict[str, Any]] = []
        truncated, last = True, 0
        while truncated and len(parts) < _MOST_PARTS:
            exchange = self._exchange(LIST_PARTS, info.uri, info)
            exchange.arguments = {"PartNumberMarker": last}
            self._store.send(exchange)
            page = exchange.told.get("ObjectParts", {})
            if exchange.told.get("ETag") != (info.etag or "").strip('"') or not page.get("Parts"):
                return []
            parts += page["Parts"]
            truncated, last = page.get("IsTruncated", False), page.get("NextPartNumberMarker", 0)
        return parts

    def _exchange(self, operation: Operation, uri: URI, pinned: ObjectInfo | None) -> Exchange:
        return Exchange(operation, uri, self._line, self._since, pinned is not None)
