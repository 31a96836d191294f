"""The small files of a directory, beside its weights: in a temporary directory while a library reads them.

Names come from a listing that a stranger may have filled. One that would lead out of the temporary directory
is refused, and so is a file too large to be settings: no weights ever get there.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torchwick.checkpoint.opening import at_once
from torchwick.config import TransferConfig
from torchwick.errors import AccessDeniedError, FormatError, ObjectNotFoundError, URIError
from torchwick.store import ObjectInfo, Store
from torchwick.transfer import RangeCache
from torchwick.transfer import list_directory as list_objects
from torchwick.uri import URI

__all__ = ["Directory", "list_directory"]

_T = TypeVar("_T")
_log = logging.getLogger("torchwick")

_LARGEST = 256 << 20  # bytes of a file; the largest vocabularies of today have some 35 MB
_MOST = 1 << 30  # bytes of all files
_LONGEST_NAME = 255  # bytes, of a file on Linux
_MOST_NAMED = 8  # files in a message


@dataclass(frozen=True)
class Directory:
    """A directory, and what is known of the files in it.

    Attributes:
        uri: where it is.
        store: what it is in.
        config: how to read.
        listed: its files by name; None where the store, or whoever asks, cannot list it.
        denied: why it could not be listed, if it was denied.
    """

    uri: URI
    store: Store = field(repr=False)
    config: TransferConfig = field(repr=False)
    listed: dict[str, ObjectInfo] | None = field(repr=False)
    denied: AccessDeniedError | None = None

    @property
    def names(self) -> str:
        """What is in it, for a message."""
        if self.listed is None:
            return "which cannot be listed"
        if not self.listed:
            return "which is empty"
        shown = ", ".join(name[:100] for name in sorted(self.listed)[:_MOST_NAMED])
        more = len(self.listed) - _MOST_NAMED
        return f"which has {shown}" + (f" and {more} more" if more > 0 else "")

    @contextmanager
    def fetched(self, wanted: Callable[[str], bool], guesses: Iterable[str]) -> Iterator[Path]:
        """Yield a temporary directory with its small files, which is deleted afterwards.

        Args:
            wanted: tells of a name whether the file is needed.
            guesses: the names to try where there is no listing.

        Raises:
            FormatError: a name leads elsewhere, or a file is too large.
            AccessDeniedError: it cannot be listed, and none of the guesses can be read.
            StoreError: a file cannot be read.
        """
        files = self._guessed(guesses) if self.listed is None else self._chosen(self.listed, wanted)
        with tempfile.TemporaryDirectory(prefix="torchwick-", ignore_cleanup_errors=True) as folder:
            for name, data in files.items():
                with Path(folder, name).open("xb") as file:
                    file.write(data)
            yield Path(folder)

    def _chosen(self, listed: dict[str, ObjectInfo], wanted: Callable[[str], bool]) -> dict[str, bytes]:
        names = sorted(filter(wanted, listed))
        addresses = {name: self._address(name) for name in names}
        sizes = {name: listed[name].size or 0 for name in names}
        if sum(sizes.values()) > _MOST:
            hint = "Keep a model's settings apart from data."
            raise FormatError(f"its small files have {sum(sizes.values())} bytes", uri=self.uri, hint=hint)
        return self._all(lambda name: self._read(addresses[name], listed[name]), names)

    def _guessed(self, guesses: Iterable[str]) -> dict[str, bytes]:
        """Try names: to those who may not list them, S3 denies objects that are not there."""

        def read(name: str) -> bytes | None:
            try:
                return self._read(self._address(name), None)
            except (ObjectNotFoundError, AccessDeniedError):
                return None

        found = {name: data for name, data in self._all(read, list(guesses)).items() if data is not None}
        if not found and self.denied is not None:
            raise self.denied
        return found

    def _all(self, read: Callable[[str], _T], names: list[str]) -> dict[str, _T]:
        return at_once(read, names)

    def _address(self, name: str) -> URI:
        try:
            address = self.uri.child(name)
        except URIError as error:
            raise FormatError(error.message, uri=self.uri, hint=error.hint) from error
        if "/" in name or len(name.encode()) > _LONGEST_NAME:
            hint = "Delete it from the directory."
            raise FormatError(f"{name[:100]!r} is no name of a file", uri=self.uri, hint=hint)
        return address

    def _read(self, address: URI, info: ObjectInfo | None) -> bytes:
        cache = RangeCache(self.store, address, self.config, info=info)
        size = cache.info.size
        if size is None:
            with_end = cache.head
        elif size > _LARGEST:
            hint = "Delete it from the directory, or move it to another."
            raise FormatError(f"it has {size} bytes, more than any settings", uri=address, hint=hint)
        else:
            with_end = cache.read(0, size)
        return bytes(with_end)


def list_directory(uri: URI, store: Store, config: TransferConfig) -> Directory:
    """Look what is in a directory.

    Args:
        uri: the directory.
        store: where it is.
        config: how to ask.

    Raises:
        ObjectNotFoundError: there is no such bucket, or no such directory among files.
        StoreError: it cannot be listed, for another reason than that it is not allowed.
    """
    try:
        listed = list_objects(uri, store, config)
    except AccessDeniedError as error:
        if uri.scheme == "file":
            raise
        _log.info("%s: may not be listed; trying the names that models have", uri)
        return Directory(uri, store, config, None, error)
    return Directory(uri, store, config, listed)
