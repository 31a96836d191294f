"""Files, held to the same contract as objects: pinned to one version, read by ranges into memory."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from torchwick.errors import AccessDeniedError, ObjectNotFoundError, StoreError
from torchwick.store.base import Body, ObjectInfo, check_pinned
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
        found = os.fstat(file.fileno())
        info = ObjectInfo(uri, found.st_size, f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"')
        if pinned is not None:
            check_pinned(info, pinned)
        if while_waiting is not None:
            while_waiting()
        first = max(0, found.st_size + start) if start < 0 else start
        last = found.st_size if stop is None else min(stop, found.st_size)
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
                hint = "It is a folder: name a file in it."
                raise StoreError("the file cannot be opened", uri=uri, hint=hint) from error
            except OSError as error:
                raise StoreError(f"the file cannot be opened: {error.strerror}", uri=uri) from error
        return self._file

    def checksum(self, info: ObjectInfo) -> None:
        """Return None: a file has no checksum beside it."""

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
