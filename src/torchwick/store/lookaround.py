"""After a refusal: what a listing tells of the reason. It costs one to three requests, before an error."""

from __future__ import annotations

import posixpath
from difflib import SequenceMatcher
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from torchwick.uri import URI

__all__ = ["LookAround"]

_UNKNOWN = (BotoCoreError, ClientError, ResponseParserError, KeyError, OSError)
"""What keeps a listing from telling anything: no permission, no such request, no listing."""
_ALIKE = 0.7  # a letter or two wrong in a short name, a word in a long one
_MOST_LISTED = 1000  # keys of one answer, the most S3 gives
_ASK = "ask the bucket's owner to grant s3:GetObject on it, and kms:Decrypt if a KMS key encrypts it."
_UNSURE = (
    f"Check the key: without s3:ListBucket, S3 answers the same where there is none. If it is right, {_ASK} "
    "If the bucket is requester-pays, pass S3Config(requester_pays=True)."
)


class LookAround:
    """Asks for a listing or two.

    Args:
        client: botocore's.
        uri: the object that was refused.
        arguments: further ones of each request.
    """

    def __init__(self, client: Any, uri: URI, arguments: dict[str, Any]) -> None:
        self._client = client
        self._uri = uri
        self._arguments = {"Bucket": uri.bucket} | arguments

    def why_missing(self) -> str | None:
        """Return a hint that names the nearest keys, or None where nothing is known of them."""
        try:
            return self._nearest_beneath()
        except _UNKNOWN:
            return None

    def why_denied(self) -> str:
        """Return a hint that tells a missing permission from a missing object, as far as that can be."""
        try:
            listed = self._list(Prefix=self._uri.key, MaxKeys=1).get("Contents", [])
            exists = any(entry["Key"] == self._uri.key for entry in listed)
        except _UNKNOWN:
            return _UNSURE
        if exists:
            return f"It exists: {_ASK}"
        return "The bucket may be listed, and no such key is in it: check the key; keys are case-sensitive."

    def _nearest_beneath(self) -> str | None:
        bucket, key = f"s3://{self._uri.bucket}", self._uri.key
        folder = key if key.endswith("/") else f"{key}/"
        if self._list(Prefix=folder, MaxKeys=1).get("Contents"):
            return f"It is a folder: name one object in it (`aws s3 ls {bucket}/{folder}`)."
        prefix = key[: key.rfind("/") + 1]
        names, complete = self._names(prefix)
        if prefix and not names:
            prefix = ""
            names, complete = self._names(prefix)
        nearest = _nearest(_step_beyond(prefix, key), names)
        if nearest:
            return f"Did you mean {' or '.join(f'{bucket}/{name}' for name in nearest)}?"
        if not complete:
            return None
        if not names:
            return "The bucket is empty: check its name, and AWS_ENDPOINT_URL."
        return f"Nothing of a similar name is under {bucket}/{prefix}: keys are case-sensitive."

    def _names(self, prefix: str) -> tuple[list[str], bool]:
        """Return keys, and folders with their slash, directly under a prefix, and whether these are all."""
        answer = self._list(Prefix=prefix, Delimiter="/", MaxKeys=_MOST_LISTED)
        keys = [entry["Key"] for entry in answer.get("Contents", [])]
        keys += [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
        return keys, not answer.get("IsTruncated", False)

    def _list(self, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.list_objects_v2(**self._arguments, **arguments)
        return answer


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
