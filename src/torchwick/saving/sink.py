"""Where files are written to: in order, from their start to their end, and complete or not at all.

A `Sink` is one such file, a `Folder` makes them and lets all of them appear together. Nothing is written
anywhere but at a sink's end, so that a store which takes an object as a sequence of parts can be one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from torchwick.errors import AccessDeniedError, ObjectExistsError, ObjectNotFoundError, StoreError
from torchwick.uri import URI

__all__ = ["Folder", "LocalFolder", "Sink"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Sink(Protocol):
    """A file that is being written."""

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes, which have to stay as they are until the folder is committed.

        Raises:
            StoreError: they cannot be written.
        """
        ...


class Folder(Protocol):
    """Files that appear together at the end, or not at all.

    A context manager: what was not committed when it is left, by an error or by Ctrl-C, is gone.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None: ...

    def reserve(self, size: int) -> None:
        """Make sure, as far as can be told, that there is room for so many bytes.

        Raises:
            StoreError: there is not.
        """
        ...

    def create(self, name: str, size: int) -> contextlib.AbstractContextManager[Sink]:
        """Begin a file, which ends with the context.

        Args:
            name: relative to the folder.
            size: its bytes, no more and no less.

        Raises:
            StoreError: it cannot be written.
        """
        ...

    def commit(self, outdated: Sequence[str] = ()) -> None:
        """Let all files appear, in the order in which they were begun.

        Args:
            outdated: files that are there, to be removed when the new ones are in their places.

        Raises:
            ObjectExistsError: a file of such a name has come up meanwhile.
            StoreError: the store refused.
        """
        ...


class LocalFolder:
    """A directory of this machine, which is made if it is not there.

    A file is written under another name in the same directory, brought to the disk, and renamed.

    Args:
        uri: the directory.
        overwrite: whether files of the names that are written may be replaced.
    """

    def __init__(self, uri: URI, *, overwrite: bool) -> None:
        self._uri = uri
        self._path = Path(uri.key)
        self._overwrite = overwrite
        self._made = False
        self._unnamed: dict[str, Path] = {}
        self._placed: list[Path] = []
        self._committed = False

    def __enter__(self) -> Self:
        with _told(self._uri), contextlib.suppress(FileExistsError):
            self._path.mkdir()
            self._made = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        # What replaced another file is left: there is no way back, and it is whole.
        undone = [] if self._committed or self._overwrite else self._placed
        for path in (*self._unnamed.values(), *undone):
            path.unlink(missing_ok=True)
        if self._made and not self._committed:
            with contextlib.suppress(OSError):  # someone else has put something there
                self._path.rmdir()

    def reserve(self, size: int) -> None:
        """Look at what is free on the disk; see `Folder`."""
        with _told(self._uri):
            disk = os.statvfs(self._path)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and size > free:  # some network file systems say nothing but zeros
            raise StoreError(
                f"{size} bytes are to be written, and {free} are free on that disk",
                uri=self._uri,
                hint="Free the rest, or write to another disk.",
                code="ENOSPC",
            )

    @contextlib.contextmanager
    def create(self, name: str, size: int) -> Iterator[Sink]:  # noqa: ARG002 - `reserve` looked for room
        """Begin a file; see `Folder`."""
        uri = _in(self._uri, name)
        path = self._path / f".torchwick-{secrets.token_hex(8)}.tmp"
        with _told(uri):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._unnamed[name] = path
        try:
            yield _LocalSink(descriptor, uri)
            with _told(uri):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def commit(self, outdated: Sequence[str] = ()) -> None:
        """Rename; see `Folder`."""
        for name, written in list(self._unnamed.items()):
            uri, path = _in(self._uri, name), self._path / name
            if not self._overwrite and os.path.lexists(path):
                raise ObjectExistsError("it came up while it was being written", uri=uri, hint=_NAME_ANOTHER)
            with _told(uri):
                written.replace(path)
            self._placed.append(path)
            del self._unnamed[name]
        with _told(self._uri):
            for name in outdated:
                (self._path / name).unlink(missing_ok=True)
            _sync_directory(self._path)
        self._committed = True


_NAME_ANOTHER = "Write to another place, or pass overwrite=True."


class _LocalSink:
    def __init__(self, descriptor: int, uri: URI) -> None:
        self._descriptor = descriptor
        self._uri = uri

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes; the system may take them in several goes."""
        left = memoryview(data)
        with _told(self._uri):
            while left:
                left = left[os.write(self._descriptor, left) :]


def _in(directory: URI, name: str) -> URI:
    return replace(directory, key=directory.key + name)


def _sync_directory(path: Path) -> None:
    """Bring the new names to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _told(uri: URI) -> Iterator[None]:
    """Raise what the system refuses as an error that says what to do."""
    try:
        yield
    except OSError as error:
        raise _refusal(error, uri) from error


def _refusal(error: OSError, uri: URI) -> StoreError:
    code = errno.errorcode.get(error.errno or 0)
    if error.errno in _FULL:
        hint = "Free some space, or write to another disk; nothing was left there."
        return StoreError("the disk is full", uri=uri, hint=hint, code=code)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        hint = "Check the mode of the directory, or write to another."
        return AccessDeniedError(f"it may not be written: {error.strerror}", uri=uri, hint=hint, code=code)
    if isinstance(error, FileNotFoundError):
        hint = "Make the directory that it is to be in."
        return ObjectNotFoundError("there is no directory for it", uri=uri, hint=hint, code=code)
    hint = "Write to another place."
    return StoreError(f"it cannot be written: {error.strerror}", uri=uri, hint=hint, code=code)
