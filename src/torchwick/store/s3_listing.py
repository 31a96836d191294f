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
    """Return the objects directly in a directory, from as many pages as there are.

    Args:
        directory: where.
        ask: sends a request with these further arguments, and returns the page as botocore reads it.

    Raises:
        StoreError: there are too many, or the pages contradict the request.
    """
    objects: Listing = []
    entries = 0
    token: str | None = None
    while True:
        page = ask({} if token is None else {"ContinuationToken": token})
        found, folders = page.get("Contents", []), page.get("CommonPrefixes", [])
        objects += _direct(directory, found)
        if not page.get("IsTruncated"):
            return sorted(objects, key=lambda info: info.uri.key)
        entries += max(len(found) + len(folders), _LEAST_OF_A_PAGE)
        if entries >= _MOST_ENTRIES:
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
        if not key.startswith(directory.key):
            raise lying_answer(directory, f"the store's listing names {key[:200]!r}, which is not in it")
        name = key[len(directory.key) :]
        if name and "/" not in name:
            yield ObjectInfo(replace(directory, key=key), entry.get("Size"), _quoted(entry.get("ETag")))


def _quoted(tag: str | None) -> str | None:
    """Return a tag as HTTP spells it (RFC 9110, section 8.8.3), where a store leaves out the quotes."""
    if not tag:
        return None
    return tag if tag.endswith('"') else f'"{tag}"'
