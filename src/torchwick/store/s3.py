"""The control plane of S3: botocore finds credentials, region and endpoint, and signs; our line reads.

A handler on botocore's public event ``before-send.s3.GetObject`` receives each request complete and
signed, sends it over a `Line`, and returns the answer with its body unread. Endpoint rules, credential
renewal, S3 Express sessions and the parsing of errors stay botocore's, on every part.
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable
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
from torchwick.errors import StoreError
from torchwick.store.base import Body, EmptyBody, ObjectInfo
from torchwick.store.http import HTTPAnswer, Line, range_header, ranged_body
from torchwick.store.pool import LinePool, PooledConnection
from torchwick.store.s3_errors import from_botocore, from_client_error, not_s3
from torchwick.uri import URI

__all__ = ["S3Store"]


class S3Store:
    """Objects in S3, as one set of credentials sees them.

    Args:
        config: who asks, and which S3.
        timeout: seconds without a byte after which a connection counts as dead.
    """

    def __init__(self, config: S3Config, timeout: float) -> None:
        self._config = config
        self._using = threading.local()
        self._lines = LinePool(timeout, lambda: self._tls)

    @property
    def secure(self) -> bool:
        """Whether the endpoint is reached over TLS."""
        return str(self._client.meta.endpoint_url).startswith("https:")

    @cached_property
    def _session(self) -> botocore.session.Session:
        return botocore.session.Session(profile=self._config.profile)

    @cached_property
    def _client(self) -> Any:
        config = self._config
        settings = Config(
            # One attempt, since the transfer retries by itself and resumes inside a part.
            retries={"total_max_attempts": 1, "mode": "standard"},
            # botocore verifies whole answers only, and ours are ranges.
            response_checksum_validation="when_required",
            s3={"addressing_style": config.addressing_style},
            user_agent_extra="torchwick",
            signature_version=botocore.UNSIGNED if config.anonymous else None,
        )
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
        return ssl.create_default_context(cafile=bundle or botocore.httpsession.get_cert_path(verify=True))

    def connect(self) -> S3Connection:
        """Return a connection of its own for one thread."""
        return S3Connection(self, self._lines)

    def get(
        self,
        line: Line,
        uri: URI,
        conditions: dict[str, Any],
        while_waiting: Callable[[], None] | None,
    ) -> HTTPAnswer:
        """Have botocore make a GetObject request, send it over `line`, and return the answer unread.

        Raises:
            StoreError: S3 refused, or no request could be made.
        """
        if self._config.requester_pays:
            conditions = conditions | {"RequestPayer": "requester"}
        if uri.version is not None:
            conditions = conditions | {"VersionId": uri.version}
        self._using.line, self._using.while_waiting, self._using.answer = line, while_waiting, None
        try:
            self._client.get_object(Bucket=uri.bucket, Key=uri.key, **conditions)
        except ClientError as error:
            raise from_client_error(error, uri, pinned="IfMatch" in conditions) from error
        except BotoCoreError as error:
            self._forget_client()
            raise from_botocore(error, uri) from error
        except ResponseParserError as error:
            raise not_s3(uri) from error
        except ValueError as error:  # how botocore refuses an endpoint
            hint = "Write the endpoint as https://host or http://host:port."
            raise StoreError(f"the S3 client cannot be made: {error}", uri=uri, hint=hint) from error
        answer: HTTPAnswer = self._using.answer
        return answer

    def _send(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        using = self._using
        headers = {
            name: value.decode() if isinstance(value, bytes) else value
            for name, value in request.headers.items()
        }
        answer = using.line.request(request.method, request.url, headers, using.while_waiting)
        using.answer = answer
        return AWSResponse(request.url, answer.status, answer.headers, answer)


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
        conditions: dict[str, Any] = {}
        if pinned is None or pinned.ranged:
            conditions["Range"] = range_header(start, stop)
        if pinned is not None and pinned.etag is not None:
            conditions["IfMatch"] = pinned.etag
        try:
            answer = self._store.get(self._line, uri, conditions, while_waiting)
        except StoreError as error:
            if pinned is None and error.code in ("InvalidRange", "416"):  # of no bytes, none can be had
                return EmptyBody(ObjectInfo(uri, 0))
            raise
        return ranged_body(uri, answer, start, stop, pinned)
