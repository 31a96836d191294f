"""What is looked at: an object, or S3 itself, as one set of settings reaches it."""

from __future__ import annotations

import io
from dataclasses import replace
from functools import cached_property
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.credentials import CredentialResolver
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from torchwick.config import S3Config, TransferConfig
from torchwick.diagnosis.probe import Probe
from torchwick.errors import StoreError
from torchwick.store import ObjectInfo, Store
from torchwick.store.botocore_errors import endpoint_refused
from torchwick.store.identity import asked_as
from torchwick.store.local import LocalStore
from torchwick.store.s3 import S3Store
from torchwick.store.s3_client import make_client, make_session
from torchwick.store.web import WebStore
from torchwick.transfer import RangeCache
from torchwick.uri import URI

__all__ = ["CREDENTIALS_FAIL", "Case"]

CREDENTIALS_FAIL = (
    BotoCoreError,
    ClientError,
    ResponseParserError,
    KeyError,
    OSError,
    RuntimeError,
    ValueError,
)
"""What botocore's search for credentials may end with: its own errors, and what a wrong file leads it to."""

_CORRECT = "Correct the AWS configuration: the profile, and the variables whose names begin with AWS_."
_MOST_ATTEMPTS = 2  # one failure may be chance; a diagnosis need not outlast a throttling burst


class Case:
    """An object and the ways to it, each made when it is first looked at.

    Args:
        uri: the object, or None: S3 without one.
        s3: who asks, and which S3.
        transfer: how bytes are moved.
    """

    def __init__(self, uri: URI | None, s3: S3Config, transfer: TransferConfig) -> None:
        self.uri = uri
        self.s3 = s3
        self.transfer = replace(transfer, max_attempts=min(transfer.max_attempts, _MOST_ATTEMPTS))
        self.timeout = transfer.timeout
        self.secrets: tuple[str, ...] = ()
        """What must not be told, whoever repeats it."""
        self.date: str | None = None
        """The server's clock, as it wrote it."""

    @property
    def scheme(self) -> str:
        """The kind of store."""
        return "s3" if self.uri is None else self.uri.scheme

    @property
    def target(self) -> URI:
        """The object, in the checks that are made only where there is one.

        Raises:
            ValueError: there is none.
        """
        if self.uri is None:
            raise ValueError("no object was named")
        return self.uri

    @property
    def about(self) -> URI:
        """What errors are about: the object, or S3 itself."""
        return self.uri or URI("s3", "", "")

    @cached_property
    def session(self) -> botocore.session.Session:
        """The session of botocore that a load would use, before it assumes `S3Config.role_arn`."""
        return make_session(replace(self.s3, role_arn=None, external_id=None), self.timeout)

    @cached_property
    def nobody(self) -> Any:
        """A client of S3 that signs nothing: it knows the endpoint, whether or not there are credentials.

        Raises:
            BotoCoreError: region or endpoint cannot be used.
            StoreError: what botocore has no error of its own for: an endpoint, or a setting, that is none.
        """
        session = make_session(replace(self.s3, role_arn=None, external_id=None), self.timeout)
        session.register_component("credential_provider", CredentialResolver([]))
        unsigned = replace(self.s3, anonymous=True, role_arn=None, external_id=None)
        try:
            client = make_client(session, unsigned)
            _ = urlsplit(str(client.meta.endpoint_url)).port  # which botocore does not look at
        except ValueError as error:
            raise endpoint_refused(error) from error
        except AttributeError as error:  # a profile's setting that should be a section, such as s3
            raise StoreError("the S3 client cannot be made of the profile", hint=_CORRECT) from error
        return client

    @cached_property
    def url(self) -> str:
        """Where the object is asked for, or S3 itself; without query and signature."""
        uri = self.uri
        if uri is None:
            return str(self.nobody.meta.endpoint_url)
        if uri.scheme != "s3":
            return f"{uri.scheme}://{uri.bucket}{uri.key}"
        asked: list[str] = []

        def keep(request: AWSPreparedRequest, **_: object) -> AWSResponse:
            """Stand in for the sending. A presigned URL would not do: botocore makes others of those."""
            asked.append(request.url.partition("?")[0])
            return AWSResponse(request.url, HTTPStatus.OK, {}, io.BytesIO())

        self.nobody.meta.events.register("before-send.s3.GetObject", keep)
        self.nobody.get_object(Bucket=uri.bucket, Key=uri.key)
        return asked[0]

    @property
    def bucket_in_host(self) -> bool:
        """Whether the bucket's name goes into the host's, and not into the path."""
        uri = self.uri
        in_path = uri is None or urlsplit(self.url).path.startswith(f"/{uri.bucket}/")
        return self.scheme == "s3" and not in_path

    @cached_property
    def s3_store(self) -> S3Store:
        """S3 as a load would see it, with nothing remembered from earlier loads."""
        return S3Store(self.s3, self.timeout)

    @property
    def asked_as(self) -> str:
        """As whom requests are signed, for messages about those that were refused."""
        try:
            return asked_as(self.s3_store.session, self.s3)
        except CREDENTIALS_FAIL:
            return "someone whose credentials cannot be had"

    @cached_property
    def store(self) -> Store:
        """Where the object is."""
        if self.scheme == "s3":
            return self.s3_store
        if self.scheme == "file":
            return LocalStore()
        return WebStore(self.s3, self.timeout, secure=self.scheme == "https")

    @cached_property
    def cache(self) -> RangeCache:
        """The object's first bytes.

        Raises:
            StoreError: it cannot be read.
        """
        return RangeCache(self.store, self.target, self.transfer)

    @property
    def info(self) -> ObjectInfo:
        """The version that is looked at."""
        return self.cache.info

    @cached_property
    def probe(self) -> Probe:
        """The way to the server, tried step by step."""
        return Probe(self.url, self.timeout)

    def close(self) -> None:
        """Close what was opened on the way; what was never looked at was never made."""
        made = self.__dict__
        if "probe" in made:
            self.probe.close()
        if "nobody" in made:
            self.nobody.close()
        if "s3_store" in made and "client" in self.s3_store.__dict__:
            self.s3_store.client.close()
        store = made.get("store") or made.get("s3_store")
        if isinstance(store, S3Store | WebStore):
            store.close()
