"""What an error that S3 answers with means: the class, and the sentence that says what to do next."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import botocore.session
from botocore.awsrequest import HeadersDict
from botocore.exceptions import ClientError

from torchwick.errors import (
    AccessDeniedError,
    BusyError,
    CredentialsError,
    StoreError,
)
from torchwick.store.http import HTTPAnswer
from torchwick.store.s3_codes import BUSY, MEANINGS, MEANINGS_OF_WRITES, RENEW, SAME
from torchwick.store.s3_exchange import WRITES
from torchwick.uri import URI

__all__ = ["Refusal", "about_objects", "is_refusal", "read_refusal"]

_MOST_TOLD = 64 << 10  # bytes of a refusal that are read; S3's have less than one
_WHO_MATTERS = (AccessDeniedError, CredentialsError)
_ABOUT_CALLERS = (
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",  # of a signature that is old by now
    "SignatureDoesNotMatch",
)
_ABOUT_OBJECTS = (
    "GetObject",
    "GetObjectAttributes",
    "HeadObject",
    "HeadBucket",
    "ListObjectsV2",
    "CreateSession",
)
_WRITES = tuple(operation.name for operation in WRITES)

_ROLE = "Check the role's ARN, that its trust policy names who asks, and the external id if it wants one."
_FOREIGN = (
    "That was not in S3's form: check AWS_ENDPOINT_URL first; a proxy or a login page may have answered."
)


def is_refusal(error: CredentialsError) -> bool:
    """Whether S3 did not take credentials, so that others may be looked for."""
    meaning = SAME.get(error.code or "", error.code)
    return meaning in _ABOUT_CALLERS


def read_refusal(session: botocore.session.Session, client: Any, answer: HTTPAnswer) -> ClientError:
    """Have botocore's parser read an answer to a GetObject request that it did not send.

    Raises:
        ResponseParserError: the answer is not in S3's form.
    """
    model = client.meta.service_model
    parser = session.get_component("response_parser_factory").create_parser(model.metadata["protocol"])
    response = {
        "status_code": answer.status,
        "headers": HeadersDict(answer.headers),
        "body": answer.read(_MOST_TOLD),
    }
    shape = model.operation_model("GetObject").output_shape
    return ClientError(parser.parse(response, shape), "GetObject")


def about_objects(error: ClientError) -> bool:
    """Whether S3 answered with the error, and not a service that gives credentials."""
    return error.operation_name in (*_ABOUT_OBJECTS, *_WRITES)


@dataclass(frozen=True)
class Refusal:
    """An error that S3 answered with, as botocore read it.

    Attributes:
        error: botocore's.
        uri: the object asked for; None where a service that gives credentials refused.
        asked_as: as whom, in words; or the role that was asked for.
        secrets: what was sent and must not be repeated, should the answer repeat it.
    """

    error: ClientError = field(repr=False)
    uri: URI | None
    asked_as: str
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def code(self) -> str:
        """S3's name for what went wrong; the HTTP status where the answer is not S3's own."""
        return str(self._error.get("Code") or self._metadata.get("HTTPStatusCode", "Unknown"))

    @property
    def meaning(self) -> str:
        """The code that stands for all codes of the same meaning."""
        return SAME.get(self.code, self.code)

    @property
    def said(self) -> str:
        """What S3 says about it."""
        text = str(self._error.get("Message") or "").strip()
        for secret in self.secrets:
            text = text.replace(secret, "…")
        return text[:400]

    @property
    def denied_action(self) -> str | None:
        """The permission that is missing, where S3 names it, such as ``s3:GetObject``."""
        found = re.search(r"not authorized to perform: ([\w:*-]+)", self.said)
        return found[1] if found else None

    @property
    def of_a_listing(self) -> bool:
        """Whether a directory was asked for, and not an object."""
        return str(self.error.operation_name) == "ListObjectsV2"

    @property
    def of_a_write(self) -> bool:
        """Whether something was to be written, or deleted."""
        return self.error.operation_name in _WRITES

    @property
    def _meanings(self) -> dict[str, tuple[type[StoreError], str, str]]:
        return MEANINGS | MEANINGS_OF_WRITES if self.of_a_write else MEANINGS

    @property
    def seconds_ahead(self) -> float | None:
        """How far this machine's clock is ahead of the store's, or None where the answer has no date."""
        try:
            return time.time() - parsedate_to_datetime(self.headers.get("date", "")).timestamp()
        except ValueError:
            return None

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers, by their names in lower case."""
        headers: dict[str, str] = self._metadata.get("HTTPHeaders", {})
        return headers

    @property
    def _error(self) -> dict[str, Any]:
        error: dict[str, Any] = self.error.response.get("Error", {})
        return error

    @property
    def _metadata(self) -> dict[str, Any]:
        metadata: dict[str, Any] = self.error.response.get("ResponseMetadata", {})
        return metadata

    @property
    def region(self) -> str | None:
        """The bucket's region, where S3 names it."""
        return self.headers.get("x-amz-bucket-region") or self._error.get("Region")

    def explained(
        self, *, pinned: bool = False, look_around: Callable[[], str | None] = lambda: None
    ) -> StoreError:
        """Return what it means.

        Args:
            pinned: whether the object had been seen before in this load: its absence now is a change.
            look_around: returns a better hint, or None, from what else the store tells. It may ask it.
        """
        if self.code in BUSY:
            said = f": {self.said}" if self.said else ""
            who = "S3" if about_objects(self.error) else "STS, which gives the credentials,"
            return BusyError(
                f"{who} answered {self.code}{said}", retry_after=self._retry_after, **self._about
            )
        if not about_objects(self.error):
            return self._no_credentials()
        meaning = (
            "PreconditionFailed"
            if pinned and self.meaning in ("NoSuchKey", "NoSuchVersion")
            else self.meaning
        )
        if meaning not in self._meanings:
            return self._unknown()
        kind, message, hint = self._meanings[meaning]
        better = _BETTER[meaning](self) if meaning in _BETTER else None
        text = f"{better[0] if better else message} (S3 answered {self._quoted})"
        if issubclass(kind, _WHO_MATTERS):
            text += f", asked as {self.asked_as}"
        hint = better[1] if better else look_around() or hint
        return kind(text, hint=f"{_FOREIGN} {hint}" if self._foreign else hint, **self._about)

    @property
    def _foreign(self) -> bool:
        """Whether something answered that is not S3; an answer to HEAD never has a body that could tell."""
        return self.code.isdecimal() and self.error.operation_name not in ("HeadObject", "HeadBucket")

    @property
    def _quoted(self) -> str:
        return f"{self.code}: {self.said.rstrip('.')}" if self._says_more else self.code

    @property
    def _says_more(self) -> bool:
        """Whether the message adds to the code, as "Access Denied" does not."""
        return self.denied_action is not None or self.meaning not in self._meanings

    @property
    def _about(self) -> dict[str, Any]:
        identity = self.asked_as if about_objects(self.error) else None
        return {"uri": self.uri, "code": self.code, "request_id": self._request_id, "identity": identity}

    @property
    def _request_id(self) -> str | None:
        return self._metadata.get("RequestId") or self.headers.get("x-amz-request-id")

    @property
    def _retry_after(self) -> float | None:
        """``Retry-After`` in seconds; its other form, a date, is left to the back-off."""
        try:
            seconds = float(self.headers.get("retry-after", ""))
        except ValueError:
            return None
        return seconds if math.isfinite(seconds) and seconds >= 0 else None

    def _unknown(self) -> StoreError:
        if "server side encryption" in self.said.lower().replace("-", " "):
            message = f"it is encrypted with a key that its owner supplied, SSE-C (S3 answered {self.code})"
            hint = "Ask for that key of 32 bytes, and pass it: S3Config(sse_customer_key=…)."
            return StoreError(message, hint=hint, **self._about)
        if "encryption parameters are not applicable" in self.said:
            message = f"it is not encrypted with a key of its owner's (S3 answered {self.code})"
            return StoreError(message, hint="Leave out S3Config.sse_customer_key.", **self._about)
        if self.code.isdecimal():
            return StoreError(f"something that is not S3 answered {self.code}", hint=_FOREIGN, **self._about)
        about = f", and give them the request's id, {self._request_id}" if self._request_id else ""
        hint = f"Ask whoever runs the store{about}."
        return StoreError(f"S3 answered {self.code}: {self.said or 'no message'}", hint=hint, **self._about)

    def _no_credentials(self) -> StoreError:
        """The refusal came from where credentials are had, not from S3."""
        said = f": {self.said.rstrip('.')}" if self.said else ""
        if self.error.operation_name.startswith("AssumeRole"):
            message = f"{self.asked_as} could not be assumed: STS answered {self.code}{said}"
            return CredentialsError(message, hint=_ROLE, **self._about)
        message = f"no credentials were given: {self.error.operation_name} was answered {self.code}{said}"
        return CredentialsError(message, hint=RENEW, **self._about)


def _denied(refusal: Refusal) -> tuple[str, str] | None:
    action = refusal.denied_action
    if action is None and "request has expired" in refusal.said.lower():
        return "the signature has expired", "Set this machine's clock, and have it kept by NTP."
    if "explicit deny" in refusal.said:
        return "a policy forbids it outright", (
            "Look for Deny in the bucket's policy: it may want requests to come from a certain network."
        )
    if refusal.of_a_listing:
        return "the directory may not be listed", (
            f"Ask the bucket's owner to grant {action or 's3:ListBucket'} on it, or name one object of the "
            "directory, such as its model.safetensors.index.json."
        )
    if action is None:
        return None
    if refusal.of_a_write and action.startswith("s3:"):
        return "writing it is not allowed", f"Ask the bucket's owner to grant {action} on it."
    if action == "s3:ListBucket":
        return "the object does not exist, or reading it is not allowed", (
            "Check the key first: without s3:ListBucket on the bucket, S3 does not say that a key is missing."
        )
    if action.startswith("kms:"):
        return (
            "the KMS key that encrypts it may not be used",
            f"Ask the KMS key's owner to grant {action} on it.",
        )
    return "reading it is not allowed", f"Ask the bucket's owner to grant {action} on it."


def _deleted(refusal: Refusal) -> tuple[str, str] | None:
    if refusal.headers.get("x-amz-delete-marker") != "true":
        return None
    return "the object was deleted", "An earlier version may be there still: load it by ?versionId=."


def _elsewhere(refusal: Refusal) -> tuple[str, str] | None:
    region = refusal.region
    if region is None:
        return None
    return (
        f"the bucket is in the region {region}",
        f"Set AWS_DEFAULT_REGION, or S3Config.region, to {region}.",
    )


def _skewed(refusal: Refusal) -> tuple[str, str] | None:
    ahead = refusal.seconds_ahead
    if ahead is None:
        return None
    direction = "ahead of" if ahead > 0 else "behind"
    message = f"this machine's clock is {round(abs(ahead) / 60)} minutes {direction} the store's"
    return message, "Set this machine's clock, and have it kept by NTP."


_BETTER: dict[str, Callable[[Refusal], tuple[str, str] | None]] = {
    "AccessDenied": _denied,
    "NoSuchKey": _deleted,
    "PermanentRedirect": _elsewhere,
    "RequestTimeTooSkewed": _skewed,
}
"""Messages and hints for refusals that say more than their code."""
