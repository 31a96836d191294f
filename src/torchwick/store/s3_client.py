"""Sessions and clients of botocore, made from an `S3Config`: who asks, and which S3."""

from __future__ import annotations

import base64
import os
from functools import lru_cache, partial
from typing import Any

import botocore
import botocore.httpsession
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.credentials import (
    AssumeRoleCredentialFetcher,
    CredentialProvider,
    CredentialResolver,
    DeferredRefreshableCredentials,
)
from botocore.exceptions import NoCredentialsError

from torchwick.config import S3Config

__all__ = [
    "customer_key",
    "leave_payload_unsigned",
    "make_client",
    "make_session",
    "payer",
    "region_of",
    "secrets_of",
    "trusted_bundle",
]

_SESSION_NAME = "torchwick"  # what CloudTrail shows for an assumed role
_SOMEWHERE = "us-east-1"  # a region for STS, which answers for every one of its partition


def make_session(config: S3Config, timeout: float) -> botocore.session.Session:
    """Return a session that finds credentials as boto3 does, and then assumes the role asked for.

    Args:
        config: who asks.
        timeout: seconds without an answer after which a service counts as out of reach.
    """
    session = botocore.session.Session(profile=config.profile)
    session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    # Nobody reads the answers' dates, and parsing one is a tenth of a request's cost.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    # For the services that give credentials: a profile's role is assumed through clients of botocore's own.
    patient = Config(connect_timeout=timeout, read_timeout=timeout, retries={"total_max_attempts": 2})
    session.set_default_client_config(patient)
    if config.role_arn is not None:
        own = session.get_component("credential_provider")
        resolver = CredentialResolver([_RoleProvider(session, own, config)])
        session.register_component("credential_provider", resolver)
    return session


@lru_cache(maxsize=4)
def _loader(data_path: str | None) -> botocore.loaders.Loader:
    """Return the reader of botocore's models, one for all sessions: they are 11 MB and 60 ms each time."""
    return botocore.loaders.create_loader(data_path)


class _RoleProvider(CredentialProvider):  # type: ignore[misc]  # botocore is not typed
    """Assumes `S3Config.role_arn` with whatever credentials there are, and again before they expire."""

    METHOD = "assume-role"

    def __init__(
        self,
        session: botocore.session.Session,
        own: CredentialResolver,
        config: S3Config,
    ) -> None:
        super().__init__(session)
        self._own = own
        self._arguments = {"RoleSessionName": _SESSION_NAME}
        if config.external_id is not None:
            self._arguments["ExternalId"] = config.external_id
        self._role_arn = config.role_arn
        self._make_client = partial(
            session.create_client,
            region_name=region_of(session, config) or _SOMEWHERE,
            verify=config.ca_bundle,
        )

    def load(self) -> DeferredRefreshableCredentials:
        """Return credentials that are fetched when first needed.

        Raises:
            NoCredentialsError: there are none to assume the role with.
        """
        source = self._own.load_credentials()
        if source is None:
            raise NoCredentialsError
        fetcher = AssumeRoleCredentialFetcher(self._make_client, source, self._role_arn, self._arguments)
        return DeferredRefreshableCredentials(fetcher.fetch_credentials, self.METHOD)


def make_client(session: botocore.session.Session, config: S3Config) -> Any:
    """Return an S3 client that tries each request once.

    Args:
        session: who asks.
        config: which S3.
    """
    chosen = None if config.addressing_style == "auto" else {"addressing_style": config.addressing_style}
    settings = Config(
        # One attempt, since the transfer retries by itself and resumes inside a part.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # botocore verifies whole answers only, and ours are ranges.
        response_checksum_validation="when_required",
        # What is written has its checksum from the transfer, which sums parts and knows the whole.
        request_checksum_calculation="when_required",
        s3=chosen,
        user_agent="torchwick",
        signature_version=botocore.UNSIGNED if config.anonymous else None,
    )
    return session.create_client(
        "s3",
        region_name=config.region,
        endpoint_url=config.endpoint_url,
        verify=config.ca_bundle,
        config=settings,
    )


def region_of(session: botocore.session.Session, config: S3Config) -> str | None:
    """Return the region that is asked for, or None where nothing names one."""
    region: str | None = config.region or session.get_config_variable("region")
    return region


def trusted_bundle(session: botocore.session.Session, config: S3Config) -> str:
    """Return the file of the authorities that botocore trusts: the one named, else the one it carries."""
    named = (
        config.ca_bundle or session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    )
    return str(named or botocore.httpsession.get_cert_path(verify=True))


def customer_key(config: S3Config) -> dict[str, Any]:
    """Return the arguments of a request for an object that the caller's own key encrypts (SSE-C)."""
    key = config.sse_customer_key
    return {} if key is None else {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}


def secrets_of(config: S3Config) -> tuple[str, ...]:
    """Return the caller's own key as it is sent, which no message may repeat."""
    key = config.sse_customer_key
    return (base64.b64encode(key).decode("ascii"),) if isinstance(key, bytes) else ()


def payer(config: S3Config) -> dict[str, Any]:
    """Return the arguments that accept the bill for a request."""
    return {"RequestPayer": "requester"} if config.requester_pays else {}


def leave_payload_unsigned(request: Any, **_: object) -> None:
    """Have a request signed without its body, which botocore is not given.

    The setting is that of a client, `payload_signing_enabled`, changed for one request: lists of parts and
    the like stay signed.
    """
    config = request.context["client_config"]
    unsigned = Config(s3={**(config.s3 or {}), "payload_signing_enabled": False})
    request.context["client_config"] = config.merge(unsigned)
