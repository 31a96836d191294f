"""What an error of botocore's own means: no credentials, no endpoint, no network, no answer of S3's."""

from __future__ import annotations

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError

from torchwick.errors import CredentialsError, StoreError, TorchwickError, TransferError, URIError
from torchwick.uri import URI

__all__ = ["endless_redirect", "endpoint_refused", "from_botocore", "not_s3"]

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


def from_botocore(error: BotoCoreError, uri: URI | None, searched: str = "") -> TorchwickError:
    """Translate an error that botocore raised before or after S3 had its say.

    Args:
        error: botocore's.
        uri: the object asked for.
        searched: where credentials were looked for, in words.
    """
    if isinstance(error, boto.NoCredentialsError):
        where = f": looked for in {searched}" if searched else ""
        return CredentialsError(
            f"no AWS credentials were found{where}",
            uri=uri,
            hint="Give the machine an IAM role, or set AWS_PROFILE or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY; for a public bucket pass S3Config(anonymous=True).",
        )
    if isinstance(error, _NO_CREDENTIALS):
        return CredentialsError(
            f"the AWS credentials cannot be used: {_flat(error)}", uri=uri, hint=_credentials_hint(error)
        )
    if isinstance(error, boto.ParamValidationError):  # its message is a regular expression
        hint = "A bucket's name has 3 to 63 small letters, digits, dots and hyphens."
        return URIError("that is no name of a bucket, and no ARN of one", uri=uri, hint=hint)
    if isinstance(error, boto.UnsupportedS3ArnError):
        return URIError(_flat(error), uri=uri, hint="Give the ARN of an access point, or a bucket's name.")
    if isinstance(error, boto.EndpointProviderError | boto.InvalidEndpointConfigurationError):
        return StoreError(f"there is no S3 at that endpoint: {_flat(error)}", uri=uri, hint=_ENDPOINT)
    if isinstance(error, boto.NoRegionError):
        hint = "Set AWS_DEFAULT_REGION, or S3Config.region."
        return StoreError("the AWS region is not known", uri=uri, hint=hint)
    if isinstance(error, boto.HTTPClientError):
        hint = "Check the network, the endpoint, and the proxy: `torchwick doctor` tries each."
        return TransferError(f"the network failed: {_flat(error)}", uri=uri, hint=hint)
    return StoreError(f"botocore could not make the request: {_flat(error)}", uri=uri)


def _flat(error: BotoCoreError) -> str:
    """Return botocore's message as one line without a full stop."""
    return " ".join(str(error).split()).rstrip(".")


def _credentials_hint(error: BotoCoreError) -> str:
    if isinstance(error, boto.ProfileNotFound):
        return "Check AWS_PROFILE, or S3Config.profile, against ~/.aws/config and ~/.aws/credentials."
    if isinstance(error, boto.PartialCredentialsError):
        return "Set the access key and its secret key together, or neither."
    if isinstance(error, boto.SSOError | boto.TokenRetrievalError):
        return "Log in again: `aws sso login`, with --profile if you use one."
    if isinstance(error, boto.ConfigParseError | boto.ConfigNotFound | boto.InvalidConfigError):
        return "Mend the AWS configuration file it names."
    return "Find out why with `torchwick doctor`, which tries every source of credentials."


def not_s3(uri: URI) -> StoreError:
    """Return the error for an answer that botocore cannot parse."""
    return StoreError(
        "something that is not S3 answered",
        uri=uri,
        hint="Check AWS_ENDPOINT_URL: the answer is not in S3's form.",
    )


def endpoint_refused(error: ValueError, uri: URI) -> StoreError:
    """Return the error for an endpoint that botocore makes no client for."""
    return StoreError(f"the S3 client cannot be made: {error}", uri=uri, hint=_ENDPOINT)


def endless_redirect(uri: URI) -> StoreError:
    """Return the error for a store that redirects every request and names no region."""
    hint = "Set AWS_DEFAULT_REGION, or S3Config.region, to the bucket's region; check AWS_ENDPOINT_URL."
    return StoreError("the store redirects every request", uri=uri, hint=hint)
