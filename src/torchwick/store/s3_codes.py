"""What the codes of S3's errors mean: the class, the message and the hint for each.

Codes as Amazon's S3 API reference, "Error responses", lists them; "401", "Unauthorized", "SlowDownRead" and
the like are other stores', "407" a proxy's that no one was told of.
"""

from __future__ import annotations

from torchwick.errors import (
    AccessDeniedError,
    CredentialsError,
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
)

__all__ = ["BUSY", "MEANINGS", "MEANINGS_OF_WRITES", "RENEW", "SAME"]

BUSY = frozenset(
    {
        "429",
        "500",
        "502",
        "503",
        "504",
        "ConditionalRequestConflict",  # someone else wrote or deleted the key at the same moment
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "SlowDownRead",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "XMinioServerNotInitialized",
    }
)

_AGAIN = "Load it again, or pin one version with ?versionId=."
_KEYS = (
    "The key was deleted, or belongs to another store: `torchwick doctor` shows where it was found, and "
    "which store is asked."
)
RENEW = (
    "Log in again (`aws sso login`), or copy all three AWS_… variables anew. A role given to the machine "
    "renews itself."
)
_KMS = "Ask whoever runs the KMS key that encrypts it; it must be enabled, and in the bucket's region."

MEANINGS: dict[str, tuple[type[StoreError], str, str]] = {
    "NoSuchKey": (ObjectNotFoundError, "there is no such object", "Check the key; keys are case-sensitive."),
    "NoSuchVersion": (
        ObjectNotFoundError,
        "there is no such version",
        "Leave out ?versionId= for the newest.",
    ),
    "MethodNotAllowed": (
        StoreError,
        "the store does not let it be read",
        "Check the address, and AWS_ENDPOINT_URL.",
    ),
    "NoSuchBucket": (
        ObjectNotFoundError,
        "there is no such bucket",
        "Check the bucket's name, and AWS_ENDPOINT_URL if the bucket is not on Amazon's S3.",
    ),
    "NoSuchAccessPoint": (
        ObjectNotFoundError,
        "there is no such access point",
        "Check the ARN: its region, account and name.",
    ),
    "AccessDenied": (
        AccessDeniedError,
        "reading it is not allowed",
        "Ask the bucket's owner to grant s3:GetObject on it, and kms:Decrypt if a KMS key encrypts it.",
    ),
    "InvalidAccessKeyId": (CredentialsError, "the store does not know this access key", _KEYS),
    "SignatureDoesNotMatch": (
        CredentialsError,
        "the secret key does not belong to the access key",
        "Copy the secret key again, whole, with every + and / in it.",
    ),
    "ExpiredToken": (CredentialsError, "the credentials have expired", RENEW),
    "InvalidToken": (
        CredentialsError,
        "the session token is not valid",
        "Set AWS_SESSION_TOKEN together with the keys it came with, or unset all three.",
    ),
    "RequestTimeTooSkewed": (
        CredentialsError,
        "this machine's clock differs too much from the store's",
        "Set this machine's clock, and have it kept by NTP.",
    ),
    "PreconditionFailed": (ObjectChangedError, "the object was overwritten while it was being read", _AGAIN),
    "InvalidObjectState": (
        StoreError,
        "the object is archived",
        "Restore it from Glacier first (`aws s3api restore-object`); that takes minutes to hours.",
    ),
    "PermanentRedirect": (
        StoreError,
        "the bucket is in another region",
        "Set AWS_DEFAULT_REGION, or S3Config.region, to the bucket's region.",
    ),
    "KMS.DisabledException": (StoreError, "the KMS key that encrypts it is disabled", _KMS),
    "KMS.NotFoundException": (StoreError, "the KMS key that encrypts it does not exist", _KMS),
    "KMS.KMSInvalidStateException": (StoreError, "the KMS key that encrypts it cannot be used now", _KMS),
    "407": (
        CredentialsError,
        "the proxy on the way wants a user name and a password",
        "Write them into the proxy's variable: http://user:password@host:port.",
    ),
}
MEANINGS_OF_WRITES: dict[str, tuple[type[StoreError], str, str]] = {
    "AccessDenied": (
        AccessDeniedError,
        "writing it is not allowed",
        (
            "Ask the bucket's owner to grant s3:PutObject and s3:AbortMultipartUpload on it, and "
            "kms:GenerateDataKey and kms:Decrypt if a KMS key encrypts it."
        ),
    ),
    "PreconditionFailed": (
        ObjectExistsError,
        "there is an object already",
        "Write to another key, or pass overwrite=True.",
    ),
    "MethodNotAllowed": (
        StoreError,
        "the store does not let it be written",
        "Check the address, and AWS_ENDPOINT_URL.",
    ),
    "NoSuchUpload": (
        StoreError,
        "the upload was ended before it was complete",
        "Write it again: someone else, or a rule of the bucket's, aborted it.",
    ),
    "EntityTooLarge": (
        StoreError,
        "it is larger than the store takes",
        "Write it in several objects.",
    ),
    "InvalidPart": (
        StoreError,
        "the store does not have the parts that were sent",
        "Write it again, and ask whoever runs the store if that does not help.",
    ),
    "InvalidStorageClass": (
        StoreError,
        "the store has no such storage class",
        "Check PutOptions.storage_class.",
    ),
    "InvalidTag": (StoreError, "the store does not take its tags", "Check PutOptions.tags."),
    "MetadataTooLarge": (
        StoreError,
        "its metadata are longer than the store takes",
        "Shorten PutOptions.metadata: S3 takes 2 KB.",
    ),
    "QuotaExceeded": (StoreError, "the store is full", "Free some space, or have the quota raised."),
}
"""What codes mean where something was to be written."""
SAME = {
    "404": "NoSuchKey",
    "NotFound": "NoSuchKey",
    "403": "AccessDenied",
    "Forbidden": "AccessDenied",
    "AllAccessDisabled": "AccessDenied",
    "AccountProblem": "AccessDenied",
    "401": "InvalidAccessKeyId",
    "Unauthorized": "InvalidAccessKeyId",
    "InvalidSecurity": "InvalidAccessKeyId",
    "InvalidClientTokenId": "InvalidAccessKeyId",
    "412": "PreconditionFailed",
    "ExpiredTokenException": "ExpiredToken",
    "TokenRefreshRequired": "ExpiredToken",
    "RequestExpired": "RequestTimeTooSkewed",
    "EntityTooSmall": "InvalidPart",
    "InvalidPartOrder": "InvalidPart",
    "XMinioStorageFull": "QuotaExceeded",
    "XMinioAdminBucketQuotaExceeded": "QuotaExceeded",
    "507": "QuotaExceeded",
    "301": "PermanentRedirect",
    "AuthorizationHeaderMalformed": "PermanentRedirect",
    "IllegalLocationConstraintException": "PermanentRedirect",
}
"""Codes of one meaning, by the other code that stands for it in `MEANINGS`."""
