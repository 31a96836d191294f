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
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import botocore
import botocore.httpsession
import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from torchwick.config import S3Config
from torchwick.errors import CredentialsError, StoreError
from torchwick.store.base import Body, EmptyBody, ObjectInfo
from torchwick.store.collector import collector_paused
from torchwick.store.http import HTTPAnswer, Line, range_header, ranged_body, trusting
from torchwick.store.pool import LinePool, PooledConnection
from torchwick.store.s3_errors import from_botocore, from_client_error, not_s3
from torchwick.uri import URI

__all__ = ["S3Store"]

_GOOD = (200, 206)
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

    def __init__(self, config: S3Config, timeout: float) -> None:
        self._config = config
        self._signed: dict[URI, _Signed] = {}
        self._current = _Current()
        self._lines = LinePool(timeout, lambda: self._tls)

    @property
    def secure(self) -> bool:
        """Whether the endpoint is reached over TLS."""
        return str(self._client.meta.endpoint_url).startswith("https:")

    @cached_property
    def _session(self) -> botocore.session.Session:
        session = botocore.session.Session(profile=self._config.profile)
        # Nobody reads the answers' dates, and parsing one is a tenth of a request's cost.
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        return session

    @cached_property
    def _client(self) -> Any:
        config = self._config
        settings = Config(
            # One attempt, since the transfer retries by itself and resumes inside a part.
            retries={"total_max_attempts": 1, "mode": "standard"},
            # botocore verifies whole answers only, and ours are ranges.
            response_checksum_validation="when_required",
            s3={"addressing_style": config.addressing_style},
            user_agent="torchwick",
            signature_version=botocore.UNSIGNED if config.anonymous else None,
        )
        with collector_paused():
            client = self._session.create_client(
                "s3",
                region_name=config.region,
                endpoint_url=config.endpoint_url,
                verify=config.ca_bundle,
                config=settings,
            )
        client.meta.events.register("before-send.s3.GetObject", self._send)
        return client

    def _forget_client(self) -> None:
        """Look for credentials afresh at the next request: the user may have logged in by then."""
        self.__dict__.pop("_client", None)
        self.__dict__.pop("_session", None)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Trust what botocore trusts: the bundle named, else the one it carries."""
        bundle = self._config.ca_bundle or self._session.get_config_variable("ca_bundle")
        return trusting(bundle or botocore.httpsession.get_cert_path(verify=True))

    def connect(self) -> S3Connection:
        """Return a connection of its own for one thread."""
        return S3Connection(self, self._lines)

    def get(
        self, line: Line, uri: URI, conditions: dict[str, str], while_waiting: Callable[[], None] | None
    ) -> HTTPAnswer:
        """Send a GetObject request over `line`, and return the answer unread.

        Args:
            line: what to send it over.
            uri: the object.
            conditions: headers that S3 does not want signed: the range, the ETag.
            while_waiting: called after the request has gone out.

        Raises:
            StoreError: S3 refused, or no request could be made.
        """
        exchange = self._current.exchange = _Exchange(uri, line, conditions, while_waiting)
        signed = self._signed.get(uri)
        if signed is None or not signed.fresh:
            return self._ask(exchange)
        answer = exchange.send(signed.url, signed.headers)
        if answer.status in _GOOD:
            return answer
        exchange.refusal = answer
        try:
            return self._ask(exchange)
        except CredentialsError:  # they may have been renewed since they signed
            self._signed.pop(uri, None)
            return self._ask(exchange)

    def _ask(self, exchange: _Exchange) -> HTTPAnswer:
        """Have botocore make and sign a request, or read the refusal if there was one."""
        uri = exchange.uri
        arguments = {"Bucket": uri.bucket, "Key": uri.key}
        if uri.version is not None:
            arguments["VersionId"] = uri.version
        if self._config.requester_pays:
            arguments["RequestPayer"] = "requester"
        try:
            self._client.get_object(**arguments)
        except ClientError as error:
            raise from_client_error(error, uri, pinned="If-Match" in exchange.conditions) from error
        except BotoCoreError as error:
            self._forget_client()
            raise from_botocore(error, uri) from error
        except ResponseParserError as error:
            raise not_s3(uri) from error
        except OSError:
            raise
        except ValueError as error:  # how botocore refuses an endpoint; some of the network's are these too
            hint = "Write the endpoint as https://host or http://host:port."
            raise StoreError(f"the S3 client cannot be made: {error}", uri=uri, hint=hint) from error
        return exchange.answer

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Stand in for botocore's own sending."""
        exchange = self._current.exchange
        answer, exchange.refusal = exchange.refusal, None  # botocore may send again, to another region
        if answer is None:
            headers = {
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in request.headers.items()
            }
            answer = exchange.send(request.url, headers)
            if answer.status in _GOOD:
                self._remember(exchange.uri, _Signed(request.url, headers, time.monotonic()))
        return AWSResponse(request.url, answer.status, answer.headers, answer)

    def _remember(self, uri: URI, signed: _Signed) -> None:
        for known, old in list(self._signed.items()):
            if not old.fresh:
                self._signed.pop(known, None)
        self._signed[uri] = signed


@dataclass
class _Exchange:
    """A request under way and its answer, known to this thread on both sides of botocore."""

    uri: URI
    line: Line
    conditions: dict[str, str]
    while_waiting: Callable[[], None] | None
    answer: HTTPAnswer = field(init=False)
    refusal: HTTPAnswer | None = None
    """An answer that botocore has not read yet."""

    def send(self, url: str, signed_headers: dict[str, str]) -> HTTPAnswer:
        headers = signed_headers | self.conditions
        self.answer = self.line.request(url, headers, self.while_waiting)
        return self.answer


class _Current(threading.local):
    exchange: _Exchange


class S3Connection(PooledConnection):
    """One line to S3."""

    def __init__(self, store: S3Store, pool: LinePool) -> None:
        super().__init__(pool)
        self._store = store

    def get(
        self,
        uri: URI,
        start: int,
        stop: int | None,
        pinned: ObjectInfo | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Body:
        """Ask for a range; see `torchwick.store.base.Connection.get`."""
        conditions: dict[str, str] = {}
        if pinned is None or pinned.ranged:
            conditions["Range"] = range_header(start, stop)
        if pinned is not None and pinned.etag is not None:
            conditions["If-Match"] = pinned.etag
        try:
            answer = self._store.get(self._line, uri, conditions, while_waiting)
        except StoreError as error:
            if pinned is None and error.code in ("InvalidRange", "416"):  # of no bytes, none can be had
                return EmptyBody(ObjectInfo(uri, 0))
            raise
        return ranged_body(uri, answer, start, stop, pinned)
