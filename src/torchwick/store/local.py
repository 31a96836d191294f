"""Files, held to the same contract as objects: pinned to one version, read by ranges into memory."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from dataclasses import replace

from torchwick.errors import AccessDeniedError, ObjectNotFoundError, StoreError
from torchwick.store.base import Body, Listing, ObjectInfo, check_pinned
from torchwick.uri import URI

__all__ = ["LocalStore"]


class LocalStore:
    """Files of this machine."""

    secure = False
    keeps_checksums = False

    def connect(self) -> LocalConnection:
        """Return a connection of its own for one thread."""
        return LocalConnection()


class LocalConnection:
    """One open file."""

    def __init__(self) -> None:
        self._file: io.FileIO | None = None
        self._uri: URI | None = None
        self._aborted = False

    def get(
        self,
        uri: URI,
        start: int,
        stop: int | None,
        pinned: ObjectInfo | None = None,
        while_waiting: Callable[[], None] | None = None,
    ) -> Body:
        """Open a range; see `torchwick.store.base.Connection.get`."""
        file = self._open(uri)
        info = _described(uri, os.fstat(file.fileno()))
        size = info.size or 0
        if pinned is not None:
            check_pinned(info, pinned)
        if while_waiting is not None:
            while_waiting()
        first = max(0, size + start) if start < 0 else start
        last = size if stop is None else min(stop, size)
        return LocalBody(self, info, file, first, last)

    def _open(self, uri: URI) -> io.FileIO:
        if self._file is None or self._uri != uri:
            self.reset()
            try:
                self._file, self._uri = io.FileIO(uri.key), uri
            except FileNotFoundError as error:
                raise ObjectNotFoundError("there is no such file", uri=uri, hint="Check the path.") from error
            except PermissionError as error:
                raise AccessDeniedError(
                    "the file may not be read", uri=uri, hint="Check its mode."
                ) from error
            except IsADirectoryError as error:
                hint = "It is a directory: name a file in it."
                raise StoreError("the file cannot be opened", uri=uri, hint=hint) from error
            except OSError as error:
                raise StoreError(f"the file cannot be opened: {error.strerror}", uri=uri) from error
        return self._file

    def checksum(self, info: ObjectInfo) -> None:
        """Return None: a file has no checksum beside it."""

    def list(self, directory: URI) -> Listing:
        """Return the files in a directory, links to files among them; see `torchwick.store.base`."""
        return [info for info in self.entries(directory) if not info.uri.is_directory]

    def entries(self, directory: URI) -> Listing:
        """Return the files and directories in a directory; see `torchwick.store.base`."""
        directory = directory.as_directory()
        try:
            with os.scandir(directory.key) as entries:
                found = {entry.name: _stat(entry) for entry in entries}
        except FileNotFoundError as error:
            hint = "Check the path."
            raise ObjectNotFoundError("there is no such directory", uri=directory, hint=hint) from error
        except PermissionError as error:
            hint = "Check its mode."
            raise AccessDeniedError("the directory may not be read", uri=directory, hint=hint) from error
        except NotADirectoryError as error:
            hint = "Leave out the slash behind its name."
            raise StoreError("it is a file, not a directory", uri=directory, hint=hint) from error
        except OSError as error:
            text = f"the directory cannot be read: {error.strerror}"
            raise StoreError(text, uri=directory, hint="Check the disk.") from error
        return [
            _described(replace(directory, key=directory.key + name), status)
            if stat.S_ISREG(status.st_mode)
            else ObjectInfo(replace(directory, key=f"{directory.key}{name}/"), None)
            for name, status in sorted(found.items())
            if status is not None and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))
        ]

    def release(self) -> None:
        """Close the file."""
        self.reset()

    @property
    def aborted(self) -> bool:
        """Whether the transfer was cancelled."""
        return self._aborted

    def reset(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def abort(self) -> None:
        """Make every later read fail; the one in progress is bounded by its slice."""
        self._aborted = True


def _stat(entry: os.DirEntry[str]) -> os.stat_result | None:
    """Return what is known of a file, or None where it is a link to nothing, or was just deleted."""
    try:
        return entry.stat()
    except FileNotFoundError:
        return None


def _described(uri: URI, found: os.stat_result) -> ObjectInfo:
    """Make a tag of what changes when a file is overwritten."""
    return ObjectInfo(uri, found.st_size, f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"')


class LocalBody:
    """A range of an open file."""

    def __init__(
        self, connection: LocalConnection, info: ObjectInfo, file: io.FileIO, start: int, stop: int
    ) -> None:
        self._connection = connection
        self._file = file
        self.info = info
        self.start = start
        self.stop: int | None = stop
        self._left = stop - start
        file.seek(start)

    def readinto(self, buffer: memoryview) -> int:
        """Read into `buffer`; 0 at the end of the range."""
        if self._connection.aborted:
            raise ConnectionAbortedError("the transfer was cancelled")
        count = self._file.readinto(buffer[: self._left])
        self._left -= count
        return count

    def close(self) -> None:
        """Keep the file open for the next range."""
