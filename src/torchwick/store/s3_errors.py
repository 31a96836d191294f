"""What S3's and botocore's errors mean: the class, and the sentence that says what to do next."""

from __future__ import annotations

import math
from typing import Any

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError

from torchwick.errors import (
    AccessDeniedError,
    BusyError,
    CredentialsError,
    ObjectChangedError,
    ObjectNotFoundError,
    StoreError,
    TorchwickError,
    TransferError,
    URIError,
)
from torchwick.uri import URI

__all__ = ["from_botocore", "from_client_error", "not_s3"]

_BUSY = frozenset(
    {
        "429",
        "500",
        "502",
        "503",
        "504",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)

_GRANT = (
    "Grant s3:GetObject on it, and kms:Decrypt if a KMS key encrypts it. Or the key does not exist: without "
    "s3:ListBucket, S3 answers the same then."
)

# Codes as Amazon's S3 API reference, "Error responses", lists them.
_MEANING: dict[str, tuple[type[StoreError], str, str]] = {
    "NoSuchKey": (ObjectNotFoundError, "there is no such object", "Check the key; keys are case-sensitive."),
    "NoSuchVersion": (
        ObjectNotFoundError,
        "there is no such version",
        "Leave out ?versionId= for the newest.",
    ),
    "NoSuchBucket": (
        ObjectNotFoundError,
        "there is no such bucket",
        "Check the bucket's name, and AWS_ENDPOINT_URL if the bucket is not on Amazon's S3.",
    ),
    "AccessDenied": (
        AccessDeniedError,
        "the credentials may not read it",
        _GRANT,
    ),
    "InvalidAccessKeyId": (
        CredentialsError,
        "the store does not know this access key",
        "Check which credentials are found, and that the endpoint is the one they belong to.",
    ),
    "SignatureDoesNotMatch": (
        CredentialsError,
        "the secret key does not belong to the access key",
        "Copy the secret key again, whole.",
    ),
    "ExpiredToken": (
        CredentialsError,
        "the credentials have expired",
        "Renew them, e.g. with `aws sso login`.",
    ),
    "InvalidToken": (
        CredentialsError,
        "the session token is not valid",
        "Set AWS_SESSION_TOKEN together with the keys it came with, or unset all three.",
    ),
    "RequestTimeTooSkewed": (CredentialsError, "this machine's clock is wrong", "Set the clock (NTP)."),
    "PreconditionFailed": (
        ObjectChangedError,
        "the object was overwritten while it was being read",
        "Load it again, or pin one version with ?versionId=.",
    ),
    "InvalidObjectState": (
        StoreError,
        "the object is archived",
        "Restore it from Glacier first (`aws s3api restore-object`).",
    ),
}
_SAME = {
    "404": "NoSuchKey",
    "NotFound": "NoSuchKey",
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "412": "PreconditionFailed",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "RequestTimeTooSkewed",
}

_FOREIGN = "The answer is not in S3's form: check AWS_ENDPOINT_URL."

_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
    boto.ProfileNotFound,
    boto.ConfigNotFound,
    boto.ConfigParseError,
    boto.InvalidConfigError,
)


def from_client_error(error: ClientError, uri: URI, *, pinned: bool) -> StoreError:
    """Translate an error that S3 answered with.

    Args:
        error: botocore's, with S3's code and message.
        uri: the object asked for.
        pinned: whether the object had been seen before in this load: its absence now is a change.
    """
    response: dict[str, Any] = error.response
    metadata = response.get("ResponseMetadata", {})
    # An answer that is not S3's own, such as a proxy's page, has neither code nor message.
    code = str(response.get("Error", {}).get("Code") or metadata.get("HTTPStatusCode", "Unknown"))
    said = str(response.get("Error", {}).get("Message") or "no message")
    about: dict[str, Any] = {"uri": uri, "code": code, "request_id": metadata.get("RequestId")}
    if code in _BUSY:
        return BusyError(f"S3 answered {code}: {said}", retry_after=_retry_after(response), **about)
    foreign = f" {_FOREIGN}" if code.isdecimal() else ""
    code = _SAME.get(code, code)
    if pinned and code in ("NoSuchKey", "NoSuchVersion"):
        code = "PreconditionFailed"
    if code not in _MEANING:
        return StoreError(f"S3 answered {code}: {said}", hint=foreign.strip() or None, **about)
    kind, message, hint = _MEANING[code]
    return kind(f"{message} (S3 answered {about['code']})", hint=hint + foreign, **about)


def _retry_after(response: dict[str, Any]) -> float | None:
    """Read ``Retry-After`` in seconds; its other form, a date, is left to the back-off."""
    text = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def from_botocore(error: BotoCoreError, uri: URI | None) -> TorchwickError:
    """Translate an error that botocore raised before or after S3 had its say."""
    if isinstance(error, boto.NoCredentialsError):
        return CredentialsError(
            "no AWS credentials were found",
            uri=uri,
            hint="Give the machine an IAM role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; for a public bucket pass S3Config(anonymous=True).",
        )
    if isinstance(error, _NO_CREDENTIALS):
        return CredentialsError(f"the AWS credentials cannot be used: {error}", uri=uri)
    if isinstance(error, boto.ParamValidationError | boto.UnsupportedS3ArnError):
        return URIError(f"botocore does not accept it: {error}", uri=uri)
    if isinstance(error, boto.EndpointProviderError | boto.InvalidEndpointConfigurationError):
        hint = "Write the endpoint as https://host or http://host:port."
        return StoreError(f"there is no S3 at that endpoint: {error}", uri=uri, hint=hint)
    if isinstance(error, boto.HTTPClientError):
        return TransferError(f"the network failed: {error}", uri=uri)
    return StoreError(f"botocore could not make the request: {error}", uri=uri)


def not_s3(uri: URI) -> StoreError:
    """Return the error for an answer that botocore cannot parse."""
    return StoreError("something that is not S3 answered", uri=uri, hint=_FOREIGN)
