"""The one request that makes an object appear, told apart from its own echo.

When its answer is lost, nobody knows whether the object is there. Sent again, it may be refused because it
had succeeded before: the upload is gone, or there is an object now. So after a failure such a refusal is
looked into: is the object that is there the one that was sent?
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchwick.errors import BusyError, StoreError, TransferError
from torchwick.store import Stored, StoredPart, Writer
from torchwick.transfer.insist import Insistent
from torchwick.transfer.tally import Tally
from torchwick.uri import URI

__all__ = ["Appearance", "Expected", "etag_of_parts"]

_TOO_LATE = ("NoSuchUpload", "NoSuchKey", "404", "PreconditionFailed", "412")
_MD5 = re.compile(r'"?([0-9a-f]{32})"?')


@dataclass(frozen=True)
class Expected:
    """What an object is known by, before it is there.

    Attributes:
        size: its bytes.
        checksum: its CRC64NVME, or None where none was sent.
        etag: returns the tag that S3 gives to such bytes, or None where that cannot be told.
    """

    size: int
    checksum: int | None
    etag: Callable[[], str | None]

    def is_met_by(self, found: Stored) -> bool | None:
        """Whether an object that was found is this one; None: that cannot be told.

        A tag that differs says nothing: what S3 makes a tag of depends on how it encrypts.

        Example:
            >>> expected = Expected(5, checksum=7, etag=lambda: None)
            >>> [expected.is_met_by(Stored(None, None, 5, checksum)) for checksum in (7, 8, None)]
            [True, False, None]
        """
        if found.size is not None and found.size != self.size:
            return False
        if found.checksum is not None and self.checksum is not None:
            return found.checksum == self.checksum
        etag = self.etag()
        return True if etag is not None and found.etag is not None and found.etag.strip('"') == etag else None


def etag_of_parts(parts: Sequence[StoredPart]) -> str | None:
    """Return the tag that S3 gives to an object of these parts: the MD5 of their MD5s, and their number.

    Example:
        >>> etag_of_parts([StoredPart(1, '"d41d8cd98f00b204e9800998ecf8427e"', None)])
        '59adb24ef3cdbe0297f05b395827453f-1'
    """
    digests = [_MD5.fullmatch(part.etag) for part in parts]
    if not all(digests):
        return None
    joined = b"".join(bytes.fromhex(found[1]) for found in digests if found)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


class _UnknownError(Exception):
    """Nobody can tell whether the object is the one that was sent."""


class Appearance:
    """Makes one object appear.

    Args:
        uri: the object.
        write: sends the request.
        expected: what is there afterwards.

    Attributes:
        unsure: whether a request was sent whose answer did not come, or said nothing.
    """

    def __init__(self, uri: URI, write: Callable[[Writer], Stored], expected: Expected) -> None:
        self._uri = uri
        self._write = write
        self._expected = expected
        self.unsure = False

    def run(self, insistent: Insistent, tally: Tally) -> Stored:
        """Send the request until it is known what came of it.

        Args:
            insistent: sends it again.
            tally: where requests and retries are counted.

        Raises:
            StoreError: the object is not there, or not known to be there.
            IntegrityError: the store has other bytes than were sent.
        """
        try:
            return insistent.ask(self._attempt, self._uri, tally)
        except _UnknownError:
            raise TransferError(
                "the answer that it was written was lost, and whether what is there now is what was sent "
                "cannot be told",
                uri=self._uri,
                hint="Look at it, and write it again with overwrite=True if need be.",
            ) from None

    def is_there(self, writer: Writer) -> bool:
        """Whether an object is there that is the one that was sent."""
        found = writer.find(self._uri)
        return found is not None and self._expected.is_met_by(found) is True

    def _attempt(self, writer: Writer) -> Stored:
        before, self.unsure = self.unsure, True  # whatever ends the request, Ctrl-C too
        try:
            return self._write(writer)
        except StoreError as error:
            self.unsure = before or isinstance(error, BusyError | TransferError)
            if not (before and error.code in _TOO_LATE):
                raise
            refusal = error
        return self._look(writer, refusal)

    def _look(self, writer: Writer, refusal: StoreError) -> Stored:
        """Return what is there if it is what was sent, or raise the refusal."""
        try:
            found = writer.find(self._uri)
        except BusyError:
            raise
        except StoreError:
            raise _UnknownError from None
        if found is None:  # the first request may still be at work
            raise ConnectionAbortedError("the store refused what it had begun, and nothing is there")
        met = self._expected.is_met_by(found)
        if met is None:
            raise _UnknownError
        if not met:
            raise refusal
        return found
