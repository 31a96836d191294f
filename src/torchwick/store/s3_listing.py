"""What S3 has for a directory: page after page of keys that begin alike.

The pages are held against what was asked for, as every answer is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torchwick.errors import StoreError
from torchwick.store.base import Listing, ObjectInfo, lying_answer
from torchwick.uri import URI

__all__ = ["CANNOT_LIST", "listed"]

CANNOT_LIST = ("NotImplemented", "501")
"""Codes by which a store says that it lists nothing."""

_MOST_ENTRIES = 100_000
"""Objects and subfolders of one directory; a sharded checkpoint has some thousands at the most."""
_LEAST_OF_A_PAGE = 100  # entries that a page counts as, so that empty ones without end have one, too
_NAME_ONE = "Name one object of it instead, such as its model.safetensors.index.json."


def listed(directory: URI, ask: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Listing:
    """Return the objects and directories directly in a directory, from as many pages as there are.

    Args:
        directory: where.
        ask: sends a request with these further arguments, and returns the page as botocore reads it.

    Raises:
        StoreError: there are too many, or the pages contradict the request.
    """
    entries: Listing = []
    count = 0
    token: str | None = None
    while True:
        page = ask({} if token is None else {"ContinuationToken": token})
        found, folders = page.get("Contents", []), page.get("CommonPrefixes", [])
        entries += _direct(directory, found)
        entries += _deeper(directory, folders)
        if not page.get("IsTruncated"):
            return sorted(entries, key=lambda info: info.uri.key)
        count += max(len(found) + len(folders), _LEAST_OF_A_PAGE)
        if count >= _MOST_ENTRIES:
            text = f"the directory holds more than {_MOST_ENTRIES:,} objects and folders"
            raise StoreError(text, uri=directory, hint="Name a deeper folder, the one of the checkpoint.")
        before, token = token, page.get("NextContinuationToken")
        if token in (None, "", before):
            text = "the store's listing says that there is more, and not how to ask for it"
            raise StoreError(text, uri=directory, hint=_NAME_ONE)


def _direct(directory: URI, entries: Iterable[Mapping[str, Any]]) -> Iterable[ObjectInfo]:
    """Yield what lies directly in a directory: not what stands for the directory itself, nor deeper ones.

    Raises:
        StoreError: an entry lies elsewhere.
    """
    for entry in entries:
        key = str(entry.get("Key", ""))
        name = _name(directory, key)
        if name and "/" not in name:
            yield ObjectInfo(replace(directory, key=key), entry.get("Size"), _quoted(entry.get("ETag")))


def _deeper(directory: URI, prefixes: Iterable[Mapping[str, Any]]) -> Iterable[ObjectInfo]:
    """Yield the directories that lie directly in a directory.

    Raises:
        StoreError: one lies elsewhere.
    """
    for prefix in prefixes:
        key = str(prefix.get("Prefix", ""))
        name = _name(directory, key)
        if name.find("/") == len(name) - 1 > 0:
            yield ObjectInfo(replace(directory, key=key), None)


def _name(directory: URI, key: str) -> str:
    """Return a key as it is named in its directory.

    Raises:
        StoreError: it is not in there.
    """
    if not key.startswith(directory.key):
        raise lying_answer(directory, f"the store's listing names {key[:200]!r}, which is not in it")
    return key[len(directory.key) :]


def _quoted(tag: str | None) -> str | None:
    """Return a tag as HTTP spells it (RFC 9110, section 8.8.3), where a store leaves out the quotes."""
    if not tag:
        return None
    return tag if tag.endswith('"') else f'"{tag}"'
