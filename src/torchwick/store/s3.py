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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any
from urllib.parse import SplitResult, urlsplit

import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from torchwick.config import PutOptions, S3Config
from torchwick.errors import CredentialsError, StoreError, TorchwickError
from torchwick.store.base import Body, EmptyBody, Listing, ObjectInfo, StoredChecksum, check_pinned
from torchwick.store.botocore_errors import endless_redirect, from_botocore, not_s3, secret_in_endpoint
from torchwick.store.callers import Caller, Callers
from torchwick.store.http import Headers, HTTPAnswer
from torchwick.store.identity import role_of
from torchwick.store.line import trusting
from torchwick.store.lookaround import LookAround
from torchwick.store.pool import LinePool, PooledConnection
from torchwick.store.proxy import proxy_for
from torchwick.store.ranged import pinning_headers, range_header, ranged_body
from torchwick.store.redact import frameless, redacted_logs
from torchwick.store.s3_checksum import checksum_of_parts, checksum_of_whole, is_composite
from torchwick.store.s3_client import leave_payload_unsigned, payer, secrets_of, trusted_bundle
from torchwick.store.s3_errors import Refusal, about_objects, is_refusal, read_refusal
from torchwick.store.s3_exchange import (
    GET_OBJECT,
    HEAD_OBJECT,
    LIST_OBJECTS,
    LIST_PARTS,
    PUT_OBJECT,
    PUT_PART,
    READS,
    WRITES,
    Exchange,
    Operation,
    Signed,
)
from torchwick.store.s3_listing import CANNOT_LIST, listed
from torchwick.store.s3_writer import Habits, S3Writer
from torchwick.uri import URI

__all__ = ["S3Store"]

_GOOD = (200, 206)
_REDIRECTS = (301, 302, 307)
_MOST_REDIRECTS = 3
_NOT_PUBLIC = "The object is not public: leave out anonymous=True, so that requests are signed."
_OTHER_KEY = "Check that the object was stored with the key in S3Config.sse_customer_key."
_LONGEST_PAGE = 4 << 20  # bytes of a list of 1000 parts, ten times over, or of 1000 of the longest keys
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
        self._takes_conditions = True
        self._callers = Callers(config, timeout, self._prepare)
        self.habits = Habits()
        """What the store was found not to do."""
        self._current = _Current()
        self._lines = LinePool(timeout, lambda: self._tls)
        self.secure = False
        """Whether the endpoint is reached over TLS; known from the first request on."""

    @property
    def session(self) -> botocore.session.Session:
        """The session of botocore, which knows the settings.

        Raises:
            CredentialsError: the AWS configuration cannot be read.
        """
        return self._callers.session()

    @property
    def client(self) -> Any:
        """The client of botocore, with credentials that are found.

        Raises:
            CredentialsError: there are none.
            StoreError: endpoint or region cannot be used.
        """
        return self._callers.fresh().client

    def _prepare(self, client: Any) -> None:
        """Have a client's requests go over the line of the exchange under way.

        Raises:
            StoreError: its endpoint is none that anything is to be sent to.
        """
        endpoint = urlsplit(str(client.meta.endpoint_url))
        if "@" in endpoint.netloc:
            raise secret_in_endpoint()
        if self._config.sse_customer_key is not None and not _private(endpoint):
            hint = "Give the endpoint as https://host."
            raise StoreError("S3Config.sse_customer_key is not sent over plain HTTP", hint=hint)
        for operation in (*READS, *WRITES):
            client.meta.events.register(f"before-send.s3.{operation.name}", self._send)
        for operation in (PUT_OBJECT, PUT_PART):
            client.meta.events.register(f"before-sign.s3.{operation.name}", leave_payload_unsigned)
        client.meta.events.register("before-send.s3.HeadBucket", self._count_redirect)

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        """Trust what botocore trusts."""
        return trusting(trusted_bundle(self.session, self._config))

    def close(self) -> None:
        """Close idle lines, here and in botocore; the store can be used again."""
        self._lines.close()
        if self._callers.known is not None:
            self._callers.known.client.close()

    def connect(self) -> S3Connection:
        """Return a connection of its own for one thread."""
        return S3Connection(self, self._lines)

    @property
    def takes_checksums(self) -> bool:
        """Whether checksums are sent with what is written; no longer once the store has refused them."""
        return self.habits.takes_checksums

    def writer(self, options: PutOptions) -> S3Writer:
        """Return a connection that writes, of its own for one thread."""
        return S3Writer(self.send, self.habits, options, self._lines)

    def pinning_headers(self, pinned: ObjectInfo | None) -> dict[str, str]:
        """Return the headers that make the store refuse any other version, if it knows them."""
        return pinning_headers(pinned) if self._takes_conditions else {}

    def drop_conditions(self) -> None:
        """Ask without conditions from now on.

        Some stores answer ``NotImplemented`` to a conditional read. The tag in each answer is compared in any
        case; the condition only spares the bytes of a version that is not wanted.
        """
        self._takes_conditions = False

    @redacted_logs()
    def send(self, exchange: Exchange) -> HTTPAnswer:
        """Send a request, and return the answer unread.

        Raises:
            StoreError: S3 refused, or no request could be made.
        """
        caller = self._callers.known
        try:
            return self._repeat(caller, exchange) or self._ask(exchange)
        except CredentialsError as error:
            if caller is None or not is_refusal(error):
                raise
        # S3 took them some time ago: they may have been renewed or replaced since.
        self._callers.replace(caller)
        return self._ask(exchange)

    def _repeat(self, caller: Caller | None, exchange: Exchange) -> HTTPAnswer | None:
        """Send a request signed already, if there is one; None if a new one has to be made.

        Raises:
            StoreError: S3 refused.
        """
        signed = None if caller is None else caller.signed.get(exchange.uri)
        if caller is None or exchange.operation is not GET_OBJECT or signed is None or not signed.fresh:
            return None
        answer = exchange.send(signed.url, signed.headers)
        if answer.status in _GOOD:
            return answer
        if answer.status in _REDIRECTS:
            caller.signed.pop(exchange.uri, None)
            return None
        raise self._read(caller, exchange)

    def _read(self, caller: Caller, exchange: Exchange) -> StoreError:
        """Say what a refusal means that botocore has not seen."""
        try:
            parsed = read_refusal(caller.session, caller.client, exchange.answer)
        except ResponseParserError:
            return not_s3()
        return self._explained(parsed, caller, exchange)

    def _ask(self, exchange: Exchange) -> HTTPAnswer:
        """Have botocore make and sign a request, and send it."""
        failure = self._call(self._callers.fresh(exchange.line), exchange)
        if failure is not None:
            raise failure
        return exchange.answer

    def _call(self, caller: Caller, exchange: Exchange) -> BaseException | None:
        """Send a request by botocore, and return what came of it in place of an answer.

        It is returned, not raised, so that it leaves botocore's frames and errors behind: their locals hold
        signatures, tokens and keys, and a refusal may repeat what was sent.
        """
        operation = exchange.operation
        self._current.caller, self._current.exchange = caller, exchange
        try:
            call = getattr(caller.client, operation.call)
            told = operation.about(exchange.uri, self._config) | payer(self._config)
            exchange.told = call(**told, **operation.arguments, **exchange.arguments)
        except ClientError as error:
            return self._explained(error, caller, exchange)
        except BotoCoreError as error:
            failure = from_botocore(error)
            failure.__cause__ = frameless(error)
            return failure
        except ResponseParserError:
            return not_s3()
        except BaseException as error:  # noqa: BLE001 - Ctrl-C too comes through botocore's frames
            return frameless(error)
        finally:
            self._current.caller = self._current.exchange = None
        return None

    def _explained(self, error: ClientError, caller: Caller, exchange: Exchange) -> StoreError:
        """Say what a refusal means, with what else the store tells of the reason."""
        # The refusal of a role says which, not as whom its credentials were to be.
        asked_as = caller.asked_as if about_objects(error) else role_of(self._config)
        refusal = Refusal(error, exchange.uri, asked_as, (*exchange.secrets, *secrets_of(self._config)))
        if exchange.pinned or exchange.operation not in (GET_OBJECT, HEAD_OBJECT, LIST_PARTS):
            # Another listing would tell no more.
            return refusal.explained(pinned=exchange.pinned)
        return refusal.explained(look_around=lambda: self._reason(refusal.meaning, caller, exchange.uri))

    def _reason(self, meaning: str, caller: Caller, uri: URI) -> str | None:
        around = LookAround(caller.client, uri, payer(self._config))
        if meaning == "NoSuchKey":
            return around.why_missing()
        if meaning == "AccessDenied":
            return self._setting_to_check or around.why_denied()
        return None

    @property
    def _setting_to_check(self) -> str | None:
        if self._config.anonymous:
            return _NOT_PUBLIC
        return _OTHER_KEY if self._config.sse_customer_key else None

    def _send(self, request: AWSPreparedRequest, event_name: str, **_: object) -> AWSResponse | None:
        """Stand in for botocore's own sending, or leave it to that where no line waits for the answer."""
        caller, exchange = self._current.caller, self._current.exchange
        if caller is None or exchange is None:
            return None
        if event_name != f"before-send.s3.{exchange.operation.name}":  # a look around after its refusal
            return None
        headers = Headers(
            {
                name: value.decode() if isinstance(value, bytes) else value
                for name, value in request.headers.items()
            }
        )
        self.secure = request.url.startswith("https:")
        answer = exchange.send(request.url, headers, request.body)
        if exchange.operation in (LIST_PARTS, LIST_OBJECTS) and not _may_be_a_list(answer):
            raise not_s3()
        if exchange.operation is GET_OBJECT and answer.status in _GOOD:
            caller.remember(exchange.uri, Signed(request.url, headers, time.monotonic()))
        return AWSResponse(request.url, answer.status, answer.headers, answer)

    def _count_redirect(self, **_: object) -> None:
        """End a redirect that names no region: botocore asks for it, is redirected, and asks again."""
        exchange = self._current.exchange
        if exchange is not None:
            exchange.redirects += 1
            if exchange.redirects > _MOST_REDIRECTS:
                raise endless_redirect()


class _Current(threading.local):
    caller: Caller | None = None
    exchange: Exchange | None = None


def _private(endpoint: SplitResult) -> bool:
    """Whether no one on the way can read what is sent there."""
    if endpoint.scheme == "https":
        return True
    return endpoint.hostname in _THIS_MACHINE and proxy_for(endpoint.scheme, endpoint.netloc) is None


def _may_be_a_list(answer: HTTPAnswer) -> bool:
    """Whether it can be a list of parts or objects, and not the object itself, or a page for people.

    botocore would read an HTML page as a passing failure of S3's.
    """
    html = answer.status in _GOOD and answer.headers.get("Content-Type", "").startswith("text/html")
    return not html and (answer.length or 0) <= _LONGEST_PAGE


def _check_tag(tag: str | None, info: ObjectInfo) -> None:
    """Refuse an answer about another version; GetObjectAttributes takes no condition.

    Raises:
        ObjectChangedError: its tag is another.
    """
    if tag is not None and info.etag is not None:
        check_pinned(replace(info, etag=tag), info)


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
        pins = self._store.pinning_headers(pinned)
        wanted = {"Range": range_header(start, stop)} if pinned is None or pinned.ranged else {}
        exchange = self._exchange(GET_OBJECT, uri, pinned)
        exchange.conditions, exchange.while_waiting = pins | wanted, while_waiting
        try:
            answer = self._store.send(exchange)
        except TorchwickError as error:
            code = getattr(error, "code", None)
            if pinned is None and code in ("InvalidRange", "416"):  # of no bytes, none can be had
                return EmptyBody(ObjectInfo(uri, 0))
            if pins and code == "NotImplemented":
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
        except TorchwickError as error:
            raise error.about(info.uri) from error.__cause__
        return checksum_of_whole(headers, info.size or 0)

    def list(self, directory: URI) -> Listing | None:
        """Return the objects directly in a directory; see `torchwick.store.base.Connection.list`."""
        entries = self.entries(directory)
        return None if entries is None else [info for info in entries if not info.uri.is_directory]

    def entries(self, directory: URI) -> Listing | None:
        """Return the objects and directories directly in a directory; see `torchwick.store.base`."""
        directory = directory.as_directory()

        def ask(arguments: dict[str, Any]) -> dict[str, Any]:
            exchange = self._exchange(LIST_OBJECTS, directory, None)
            exchange.arguments = arguments
            self._store.send(exchange)
            return exchange.told

        try:
            return listed(directory, ask)
        except TorchwickError as error:
            if getattr(error, "code", None) in CANNOT_LIST:
                return None
            raise error.about(directory) from error.__cause__

    def _parts(self, info: ObjectInfo) -> Sequence[Mapping[str, Any]]:
        """Return the parts that an object was uploaded in, or some of them where the store tells no more.

        Raises:
            ObjectChangedError: they are another version's.
        """
        parts: list[dict[str, Any]] = []
        before, marker = -1, 0
        while before < marker <= _MOST_PARTS:  # a page that leads nowhere would be asked for without end
            exchange = self._exchange(LIST_PARTS, info.uri, info)
            exchange.arguments = {"PartNumberMarker": marker}
            self._store.send(exchange)
            _check_tag(exchange.told.get("ETag"), info)
            page = exchange.told.get("ObjectParts", {})
            parts += page.get("Parts", [])
            before, marker = marker, page.get("NextPartNumberMarker", 0) if page.get("IsTruncated") else 0
        return parts

    def _exchange(self, operation: Operation, uri: URI, pinned: ObjectInfo | None) -> Exchange:
        return Exchange(operation, uri, self._line, pinned is not None)
