"""What an error of botocore's own means: no credentials, no endpoint, no network, no answer of S3's."""

from __future__ import annotations

import re

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError

from torchwick.errors import CredentialsError, StoreError, TorchwickError, TransferError, URIError
from torchwick.store.redact import without_passwords

__all__ = [
    "endless_redirect",
    "endpoint_refused",
    "from_botocore",
    "not_s3",
    "not_sts",
    "secret_in_endpoint",
]

_ENDPOINT = "Write the endpoint as https://host or http://host:port."
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
    boto.MetadataRetrievalError,
    boto.RefreshWithMFAUnsupportedError,
)


def from_botocore(error: BotoCoreError, searched: str = "") -> TorchwickError:
    """Translate an error that botocore raised before or after S3 had its say.

    Args:
        error: botocore's.
        searched: where credentials were looked for, in words.
    """
    if isinstance(error, boto.NoCredentialsError):
        hint = (
            "On a machine in AWS give it an IAM role; elsewhere run `aws configure` or `aws sso login`, or "
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. For a public bucket pass "
            "S3Config(anonymous=True)."
        )
        hint += f" They were looked for in: {searched}." if searched else ""
        return CredentialsError("no AWS credentials were found", hint=hint)
    if isinstance(error, _NO_CREDENTIALS):
        message = f"the AWS credentials cannot be used: {_flat(error)}"
        return CredentialsError(message, hint=_credentials_hint(error))
    if isinstance(error, boto.ParamValidationError):
        return _no_address(error)
    if isinstance(error, boto.UnsupportedS3ArnError):
        return URIError(_flat(error), hint="Give the ARN of an access point, or a bucket's name.")
    if isinstance(error, boto.EndpointProviderError | boto.InvalidEndpointConfigurationError):
        return StoreError(f"there is no S3 at that endpoint: {_flat(error)}", hint=_ENDPOINT)
    if isinstance(error, boto.NoRegionError):
        hint = "Set AWS_DEFAULT_REGION, or S3Config.region."
        return StoreError("the AWS region is not known", hint=hint)
    if isinstance(error, boto.HTTPClientError | boto.ConnectionError):
        hint = "Check the network, the endpoint, and the proxy: `torchwick doctor` tries each."
        return TransferError(f"the network failed: {_flat(error)}", hint=hint)
    hint = "`torchwick doctor` tries each step by itself."
    return StoreError(f"botocore could not make the request: {_flat(error)}", hint=hint)


def _no_address(error: BotoCoreError) -> URIError:
    """Say what is wrong with a bucket or a key; botocore's message is a regular expression."""
    if "parameter Key" in str(error):
        return URIError("it is a whole bucket", hint="Name one object in it: s3://bucket/key.")
    hint = "A bucket's name has 3 to 63 small letters, digits, dots and hyphens."
    return URIError("that is no name of a bucket, and no ARN of one", hint=hint)


def _flat(error: Exception) -> str:
    """Return botocore's message as one line without a full stop, and without passwords of URLs."""
    return without_passwords(" ".join(str(error).split())).rstrip(".")


def _credentials_hint(error: BotoCoreError) -> str:
    if isinstance(error, boto.ProfileNotFound):
        return "Check AWS_PROFILE, or S3Config.profile, against ~/.aws/config and ~/.aws/credentials."
    if isinstance(error, boto.PartialCredentialsError):
        return "Set the access key and its secret key together, or neither."
    if isinstance(error, boto.SSOError | boto.TokenRetrievalError):
        return "Log in again: `aws sso login`, with --profile if you use one."
    if isinstance(error, boto.ConfigParseError | boto.ConfigNotFound | boto.InvalidConfigError):
        return "Open that file: each line has to be `[section]` or `name = value`."
    return "Find out why with `torchwick doctor`, which tries every source of credentials."


def not_s3() -> StoreError:
    """Return the error for an answer that botocore cannot parse."""
    hint = "Check AWS_ENDPOINT_URL: a proxy or a login page may have answered in the store's place."
    return StoreError("something that is not S3 answered", hint=hint)


def not_sts() -> StoreError:
    """Return the error for a service of credentials whose answer botocore cannot parse."""
    hint = "Check AWS_ENDPOINT_URL_STS, and the network: a login page may have answered in its place."
    return CredentialsError("something that gives no credentials answered in STS's place", hint=hint)


def endpoint_refused(error: ValueError) -> StoreError:
    """Return the error for an endpoint that botocore makes no client for."""
    said = _flat(error)
    without_scheme = re.fullmatch(r"Invalid endpoint: ([\w.-]+(:\d+)?)(/\S*)?", said)
    if without_scheme is None:
        hint = _ENDPOINT
    else:
        scheme = "http" if without_scheme[2] else "https"
        hint = f"Write {scheme}://{without_scheme[1]}: the {scheme}:// is missing."
    return StoreError(f"the S3 client cannot be made: {said}", hint=hint)


def endless_redirect() -> StoreError:
    """Return the error for a store that redirects every request and names no region."""
    hint = "Set AWS_DEFAULT_REGION, or S3Config.region, to the bucket's region; check AWS_ENDPOINT_URL."
    return StoreError("the store redirects every request", hint=hint)


def secret_in_endpoint() -> StoreError:
    """Return the error for an endpoint with a user name or a password in it."""
    hint = "Leave them out: keys belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    return StoreError("the endpoint's URL carries a user name or a password", hint=hint)
