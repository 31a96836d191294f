"""The file object: a position in an object's bytes, and what Python expects of a file around it."""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, BinaryIO, NoReturn, Protocol

from torchwick.uri import URI

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["Bytes", "File"]


class Bytes(Protocol):
    """The bytes of one version of an object, by offset."""

    size: int

    def read(self, start: int, into: memoryview) -> None:
        """Fill `into`, which ends within the object, with the bytes from `start` on."""
        ...

    def cancel(self) -> None:
        """Stop whatever is being read ahead, without waiting; from any thread."""
        ...

    def close(self) -> None:
        """Stop whatever is being read ahead, wait until it has stopped, and let go of all memory."""
        ...


class File(io.RawIOBase, BinaryIO):
    """An object as a read-only binary file; made by `open_file`.

    A read returns as many bytes as were asked for, unless the object ends. All bytes are of the version that
    was there when the file was opened: once that is overwritten, reads raise `ObjectChangedError`. A read
    that fails leaves the position where it was, and may be tried again.

    It may be used by any number of threads, one read at a time; not across a fork. Close it, or use it in a
    ``with`` statement: what is read ahead is stopped and its memory let go of. A file that is dropped
    unclosed does the same a little later.

    Args:
        content: the bytes.
        uri: whose they are.

    Attributes:
        mode: ``"rb"``.
    """

    mode = "rb"

    def __init__(self, content: Bytes, uri: URI) -> None:
        super().__init__()
        self._content = content
        self._uri = uri
        self._position = 0
        self._lock = threading.RLock()  # not Lock: a signal handler may close the file amid a read

    @property
    def name(self) -> str:
        """The address, without what is secret in it."""
        return str(self._uri)

    @property
    def size(self) -> int:
        """Bytes of the object."""
        return self._content.size

    def __repr__(self) -> str:
        return f"<torchwick.File {self.name!r}{' closed' if self.closed else ''}>"

    def readable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def seekable(self) -> bool:
        """Return True."""
        self._check_open()
        return True

    def tell(self) -> int:
        """Return the position."""
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move the position, and return it; it may lie beyond the end, where reads return nothing.

        Raises:
            ValueError: it would lie before the start; or the file is closed.
        """
        with self._lock:
            self._check_open()
            bases = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}
            if whence not in bases:
                raise ValueError(f"whence must be 0, 1 or 2, not {whence!r}")
            if bases[whence] + offset < 0:
                raise ValueError(f"position {bases[whence] + offset} lies before the start")
            self._position = bases[whence] + offset
            return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill `buffer` as far as the object goes, and return how many bytes that were.

        Raises:
            StoreError: they could not be read.
            ValueError: the file is closed.
        """
        with self._lock, memoryview(buffer).cast("B") as whole:
            self._check_open()
            count = self._count(len(whole))
            with whole[:count] as into:
                if count:
                    self._content.read(self._position, into)
            self._position += count
            return count

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, fewer only at the end; all that is left where it is negative or None.

        Raises:
            StoreError: they could not be read.
            ValueError: the file is closed.
        """
        with self._lock:
            self._check_open()
            left = self._count(self.size)
            # Their memory is that of the bytes which are returned: filled in place, and never copied.
            memory = io.BytesIO(bytes(left if size is None or size < 0 else min(size, left)))
            with memory.getbuffer() as into:
                self.readinto(into)
            return memory.getvalue()

    def readall(self) -> bytes:
        """Return all that is left: see `read`."""
        return self.read()

    def write(self, data: ReadableBuffer, /) -> NoReturn:  # noqa: ARG002
        """Raise `io.UnsupportedOperation`: objects are only read."""
        raise io.UnsupportedOperation("write")

    def close(self) -> None:
        """Stop reading ahead, wait until that has stopped, and let go of the memory."""
        with self._lock:
            if not self.closed:
                try:
                    self._content.close()
                finally:
                    super().close()

    def __del__(self) -> None:
        # Nothing is waited for: the collector may run on the very thread that would be waited for.
        content = getattr(self, "_content", None)
        if content is not None:
            content.cancel()

    def _count(self, wanted: int) -> int:
        return max(0, min(wanted, self.size - self._position))

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
