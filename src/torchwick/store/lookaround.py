"""After a refusal: what a listing tells of the reason. It costs a request or two, on the way to an error."""

from __future__ import annotations

import posixpath
from difflib import SequenceMatcher
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from torchwick.uri import URI

__all__ = ["why_denied", "why_missing"]

_ALIKE = 0.7  # a letter or two wrong in a short name, a word in a long one
_MOST_LISTED = 1000  # keys of one answer, the most S3 gives
_ASK = "ask the bucket's owner to grant s3:GetObject on it, and kms:Decrypt if a KMS key encrypts it."
_UNSURE = (
    f"Check the key: without s3:ListBucket, S3 answers the same where there is none. If it is right, {_ASK}"
)


def why_missing(client: Any, uri: URI) -> str | None:
    """Return a hint that names the nearest keys, or None where the bucket may not be listed.

    Args:
        client: botocore's.
        uri: the object that is not there.
    """
    prefix = uri.key[: uri.key.rfind("/") + 1]
    try:
        names = _beneath(client, uri.bucket, prefix)
        while not names and prefix:
            prefix = prefix[: prefix.rstrip("/").rfind("/") + 1]
            names = _beneath(client, uri.bucket, prefix)
    except (BotoCoreError, ClientError):
        return None
    if not names:
        return "The bucket is empty: check its name, and AWS_ENDPOINT_URL."
    if f"{uri.key}/" in names:
        return f"It is a folder: name one object in it (`aws s3 ls s3://{uri.bucket}/{uri.key}/`)."
    nearest = _nearest(_step_beyond(prefix, uri.key), names)
    if nearest:
        return f"Did you mean {' or '.join(f's3://{uri.bucket}/{name}' for name in nearest)}?"
    return f"Nothing of a similar name is under s3://{uri.bucket}/{prefix}: keys are case-sensitive."


def _nearest(key: str, names: list[str]) -> list[str]:
    """Return up to three names like `key`, the likest first; endings, all alike, say nothing."""
    matcher = SequenceMatcher(b=_stem(key))
    ratios = {}
    for name in names:
        matcher.set_seq1(_stem(name))
        ratios[name] = matcher.ratio()
    return sorted((name for name in names if ratios[name] >= _ALIKE), key=lambda name: -ratios[name])[:3]


def _stem(name: str) -> str:
    return posixpath.splitext(name)[0]


def _step_beyond(prefix: str, key: str) -> str:
    """Return the key, or the folder of it that lies directly under a prefix."""
    slash = key.find("/", len(prefix))
    return key if slash < 0 else key[: slash + 1]


def why_denied(client: Any, uri: URI) -> str | None:
    """Return a hint that tells a missing permission from a missing object, as far as the store lets it."""
    try:
        listed = client.list_objects_v2(Bucket=uri.bucket, Prefix=uri.key, MaxKeys=1).get("Contents", [])
    except (BotoCoreError, ClientError):
        return _UNSURE
    if any(entry["Key"] == uri.key for entry in listed):
        return f"It exists: {_ASK}"
    return "The bucket may be listed, and no such key is in it: check the key; keys are case-sensitive."


def _beneath(client: Any, bucket: str, prefix: str) -> list[str]:
    """Return the keys, and the folders with their slash, that lie directly under a prefix."""
    answer = client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=_MOST_LISTED)
    keys = [entry["Key"] for entry in answer.get("Contents", [])]
    return keys + [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
