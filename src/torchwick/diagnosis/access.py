"""Who asks: which credentials are found and where, and whom Amazon takes them for."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

import botocore.session
from botocore import exceptions as boto
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError

from torchwick.diagnosis.case import CREDENTIALS_FAIL, Case
from torchwick.diagnosis.findings import Finding
from torchwick.diagnosis.settings import is_amazon
from torchwick.diagnosis.words import advice_of, bare_address
from torchwick.store.botocore_errors import from_botocore
from torchwick.store.identity import SOURCES, key_hint
from torchwick.store.s3_client import region_of
from torchwick.store.s3_errors import Refusal

__all__ = ["credentials", "identity"]

_SAID_BY_STS = (400, 403)  # the statuses of its refusals (AWS STS API reference, "Common Errors")
_STS_TIMEOUT = 3.0  # seconds; in a network without a way out, STS is not worth more
_ANY_REGION = "us-east-1"  # STS of any region answers for all of its partition
_REJECTED = {
    "ExpiredToken": "the credentials have expired",
    "ExpiredTokenException": "the credentials have expired",
    "InvalidAccessKeyId": "the access key is not known",
    "InvalidClientTokenId": "the access key, or the session token, is not valid",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key",
    "UnrecognizedClientException": "the access key, or the session token, is not valid",
}
_RENEW = (
    "Renew the credentials, e.g. with `aws sso login`, or copy the keys and the session token again, whole."
)
_NO_STS = "STS is not available; does the store have STS? Set AWS_ENDPOINT_URL_STS."
_UNREACHED = "Open the way to the service that gives the credentials; AWS_ENDPOINT_URL_STS names another STS."
_STS_ENDPOINT = "Write AWS_ENDPOINT_URL_STS as https://host or http://host:port."
_LATER = "Try again later: the service that gives the credentials is not available."
_MISCONFIGURED = "Correct the AWS configuration file, and the variables whose names begin with AWS_."


@dataclass(frozen=True)
class _Source:
    """A place where botocore looks for credentials, and what was there.

    Attributes:
        method: botocore's name for it.
        credentials: what was found, or None.
        failure: why looking there failed, or None.
    """

    method: str
    credentials: Any = field(default=None, repr=False)
    failure: Exception | None = None

    @property
    def name(self) -> str:
        return SOURCES.get(self.method, self.method).removeprefix("the ")

    @property
    def result(self) -> str:
        if self.failure is not None:
            return f"failed: {_why(self.failure)}"
        return "nothing there" if self.credentials is None else "found"


def _tried(session: botocore.session.Session) -> list[_Source]:
    """Look into one place after the other, as botocore does, up to the first that has credentials."""
    tried: list[_Source] = []
    for provider in session.get_component("credential_provider").providers:
        try:
            source = _Source(provider.METHOD, provider.load())
            if source.credentials is not None:
                source.credentials.get_frozen_credentials()  # some are fetched only now
        except CREDENTIALS_FAIL as error:
            source = _Source(provider.METHOD, failure=error)
        tried.append(source)
        if source.credentials is not None:
            break
    return tried


def credentials(case: Case) -> Finding:
    """Tell which credentials are found and where, and every place that was looked into before."""
    if case.s3.anonymous:
        return Finding("ok", "nobody: requests are not signed", facts={"source": None, "sources": []})
    try:
        tried = _tried(case.session)
    except ValueError as error:  # of a setting of one of the places
        return Finding("failed", f"they cannot be looked for: {_why(error)}", _MISCONFIGURED)
    facts: dict[str, Any] = {
        "sources": [{"source": source.name, "result": source.result} for source in tried]
    }
    failed = next((source for source in tried if source.failure is not None), None)
    if failed is not None and failed.failure is not None:  # there botocore's own search ends
        found = f"those of the {failed.name} cannot be used: {_why(failed.failure)}"
        return Finding("failed", found, _advice(case, failed.failure), facts)
    source = tried[-1] if tried else _Source("none")
    if source.credentials is None:
        none = from_botocore(NoCredentialsError())
        places = ", ".join(source.name for source in tried)
        return Finding("failed", f"none were found: looked for in {places}", none.hint, facts)
    facts["source"] = source.name
    own, facts_of_own = _described(case, source.credentials)
    before = ", ".join(place.name for place in tried[:-1])
    found = f"{own}, from the {source.name}" + (f"; nothing in {before}" if before else "")
    if case.s3.role_arn is None:
        return Finding("ok", found, facts={**facts, **facts_of_own})
    return _as_role(case, found, facts)


def _described(case: Case, found: Any) -> tuple[str, dict[str, Any]]:
    """Say what can be said of credentials: their key's ends, and for how long they are good."""
    frozen = found.get_frozen_credentials()
    case.secrets += tuple(filter(None, (frozen.secret_key, frozen.token)))
    key, temporary = key_hint(frozen.access_key), frozen.token is not None
    ends = getattr(found, "_expiry_time", None)  # botocore has no public name for it
    expires = None if ends is None else ends.isoformat(timespec="seconds")
    kind = f"temporary, until {expires}" if expires else "temporary" if temporary else "does not expire"
    return f"access key {key} ({kind})", {"access_key": key, "temporary": temporary, "expires": expires}


def _as_role(case: Case, asking: str, facts: dict[str, Any]) -> Finding:
    """Assume the role, as a load would."""
    role = case.s3.role_arn
    facts["role"] = role
    try:
        assumed = case.s3_store.session.get_credentials()
        assumed.get_frozen_credentials()  # only now STS is asked
    except CREDENTIALS_FAIL as error:
        found = f"{asking} cannot act as {role}: {_why(error)}"
        return Finding("failed", found, _advice(case, error), facts)
    own, facts_of_own = _described(case, assumed)
    return Finding("ok", f"{role}, {own}, assumed with {asking}", facts={**facts, **facts_of_own})


def _why(error: Exception) -> str:
    if isinstance(error, ClientError):
        said = error.response.get("Error", {})
        answer = f"{_code(error)}: {said.get('Message') or ''}".rstrip(": .")
        return f"{error.operation_name} was answered with {answer}"
    if isinstance(error, boto.HTTPClientError) and error.fmt == boto.HTTPClientError.fmt:
        # Of no kind that botocore knows; its text may hold a part of a proxy's password.
        return f"the HTTP client failed ({type(error.kwargs['error']).__name__})"
    if isinstance(error, ResponseParserError):
        return "the answer is in no form of a service of AWS"
    if isinstance(error, KeyError | json.JSONDecodeError | UnicodeError):  # whose text may hold half a key
        return "they are not in the form that AWS defines"
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def _code(error: ClientError) -> str:
    """Return the service's name for what went wrong; the HTTP status where it gives none."""
    code = error.response.get("Error", {}).get("Code", "Unknown")
    return str(error.response["ResponseMetadata"]["HTTPStatusCode"] if code == "Unknown" else code)


def _advice(case: Case, error: Exception) -> str:
    if isinstance(error, ClientError):
        of_sts = error.operation_name.startswith("AssumeRole")
        if of_sts and error.response["ResponseMetadata"]["HTTPStatusCode"] not in _SAID_BY_STS:
            return _NO_STS
        return Refusal(error, case.about, "nobody").explained().hint or _LATER
    if isinstance(error, ResponseParserError):
        return _NO_STS
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        return _UNREACHED
    if isinstance(error, ValueError) and str(error).startswith("Invalid endpoint"):
        return _STS_ENDPOINT
    advice = advice_of(from_botocore(error)) if isinstance(error, BotoCoreError) else None
    return advice or _RENEW


def identity(case: Case) -> Finding:
    """Ask STS whom it takes the credentials for. It needs no permission.

    Raises:
        BotoCoreError: no request could be made.
    """
    if case.s3.anonymous:
        return Finding("ok", "nobody", facts={"arn": None, "account": None})
    amazons_store = is_amazon(case, str(case.nobody.meta.endpoint_url))
    named = bool(os.environ.get("AWS_ENDPOINT_URL_STS"))
    if not amazons_store and not named:
        found = "not asked: the store is not Amazon's, and AWS_ENDPOINT_URL_STS names no STS"
        return Finding("unknown", found)
    try:
        client = _sts(case)
    except ValueError as error:
        return Finding("warning", f"there is no client of STS: {error}", _STS_ENDPOINT)
    url = str(client.meta.endpoint_url)
    amazon = is_amazon(case, url)
    try:
        if amazon and not amazons_store:
            found = "not asked: the store is not Amazon's, and Amazon need not see its keys"
            return Finding("unknown", found)
        return _asked(client, url, authoritative=amazon or named)
    finally:
        client.close()


def _sts(case: Case) -> Any:
    session = case.s3_store.session
    patience = min(_STS_TIMEOUT, case.timeout)
    return session.create_client(
        "sts",
        region_name=region_of(session, case.s3) or os.environ.get("AWS_REGION") or _ANY_REGION,
        verify=case.s3.ca_bundle,
        config=Config(
            connect_timeout=patience,
            read_timeout=patience,
            retries={"total_max_attempts": 1, "mode": "standard"},
        ),
    )


def _asked(client: Any, url: str, *, authoritative: bool) -> Finding:
    """Ask, and take only the word of an STS for a refusal: a store that has none may answer anything."""
    where = f"STS at {bare_address(url)}"
    try:
        caller = client.get_caller_identity()
    except ClientError as error:
        code = _code(error)
        if code not in _REJECTED or not authoritative:
            return Finding("unknown", f"not told: {where} answered {code}")
        return Finding("failed", f"{_REJECTED[code]} ({where} answered {code})", _RENEW, {"code": code})
    except (BotoCoreError, OSError) as error:
        return Finding("unknown", f"not told: {where} is out of reach: {_why(error)}")
    except ResponseParserError:
        return Finding("unknown", f"{where} is not STS")
    if "Arn" not in caller:
        return Finding("unknown", f"{where} is not STS")
    facts = {"arn": caller["Arn"], "account": caller.get("Account")}
    return Finding("ok", f"{caller['Arn']}, account {caller.get('Account')}", facts=facts)
