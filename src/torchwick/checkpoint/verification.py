"""What an object's bytes are held against: the checksum the store keeps of them, or the caller's own."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torchwick.errors import IntegrityError, ObjectChangedError, StoreError, TransferError
from torchwick.store import ObjectInfo, Store, StoredChecksum
from torchwick.transfer import TRANSIENT, Digest, Sums, Witness, algorithm
from torchwick.uri import URI

__all__ = [
    "Expected",
    "PinnedDigest",
    "StoredSums",
    "Verify",
    "expecting",
    "nothing_kept",
    "parse_sha256",
    "read_differently",
    "unverifiable",
]

Verify = bool | Literal["auto"]
_log = logging.getLogger("torchwick")

_AGAIN = "Load it again; if that fails too, the object is damaged where it is stored: upload it again."


class Expected(Protocol):
    """What the bytes of a whole object have to come to."""

    @property
    def name(self) -> str:
        """Of the checksum, for reports."""
        ...

    @property
    def stops(self) -> Sequence[int]:
        """Where stretches with a checksum of their own end."""
        ...

    @property
    def required(self) -> bool:
        """Whether bytes that nothing else wants are read to know."""
        ...

    def witness(self, ranges: Mapping[int, Sequence[memoryview]]) -> Witness:
        """Return what sees the bytes arrive; `ranges` is where, for the whole object, by start."""
        ...

    def check(self, witness: Any, uri: URI) -> None:
        """Compare, when all has arrived.

        Raises:
            IntegrityError: the bytes are others.
        """
        ...


@dataclass(frozen=True)
class StoredSums:
    """Checksums that the store keeps."""

    stored: StoredChecksum
    required: bool

    @property
    def name(self) -> str:
        """Of the checksum."""
        return self.stored.algorithm

    @property
    def stops(self) -> Sequence[int]:
        """Where stretches with a checksum of their own end."""
        return [stop for stop, _ in self.stored.parts]

    def witness(self, ranges: Mapping[int, Sequence[memoryview]]) -> Sums:  # noqa: ARG002
        """Return what sums the bytes as they arrive, in any order."""
        return Sums(algorithm(self.stored.algorithm))

    def check(self, witness: Sums, uri: URI) -> None:
        """Compare; see `Expected.check`."""
        found = witness.folded(self.stops)
        if found is None:
            raise AssertionError("a verified load has to see every byte")
        for value, (stop, expected) in zip(found, self.stored.parts, strict=True):
            if value != expected:
                where = "" if len(found) == 1 else f" in the part that ends at byte {stop}"
                raise _mismatch(uri, self.name, f"{expected:x}", f"{value:x}", f"the store keeps{where}")


@dataclass(frozen=True)
class PinnedDigest:
    """A SHA-256 that the caller gave."""

    sha256: str
    name: ClassVar[str] = "sha256"
    stops: ClassVar[Sequence[int]] = ()
    required: ClassVar[bool] = True

    def witness(self, ranges: Mapping[int, Sequence[memoryview]]) -> Digest:
        """Return what digests the bytes in order."""
        return Digest(ranges)

    def check(self, witness: Digest, uri: URI) -> None:
        """Compare; see `Expected.check`."""
        self.compare(witness.hexdigest(), uri)

    def compare(self, found: str, uri: URI) -> None:
        """Hold a digest against the one that was given.

        Raises:
            IntegrityError: it is another.
        """
        if found != self.sha256:
            raise _mismatch(uri, self.name, self.sha256, found, "sha256= asks for")


def _mismatch(uri: URI, name: str, expected: str, found: str, whose: str) -> IntegrityError:
    hint = "It is another file than the one that was pinned, or damaged." if name == "sha256" else _AGAIN
    return IntegrityError(
        f"the bytes have the {name} {found}, and {whose} {expected}",
        uri=uri,
        hint=hint,
        algorithm=name,
        expected=expected,
        found=found,
    )


@contextmanager
def expecting(
    store: Store, info: ObjectInfo, timeout: float, *, verify: Verify, sha256: str | None
) -> Iterator[Callable[[], Expected | None]]:
    """Yield a function that tells what the bytes have to come to, or None: nothing is known.

    The store is asked on a thread of its own, beside whatever goes on meanwhile; the function waits for it.

    Args:
        store: where the object is.
        info: the version that is read.
        timeout: seconds to wait for the store's answer once nothing else is left to do.
        verify: True if it has to be verified, False if not, ``"auto"``: if the store keeps a checksum.
        sha256: the caller's digest, which is then the only one that counts, or None.

    Raises:
        IntegrityError: it has to be verified, and the store keeps nothing to verify it by.
    """
    if sha256 is not None:
        yield lambda: PinnedDigest(sha256)
    elif verify is False or not store.keeps_checksums:
        if verify is True:
            raise nothing_kept(info.uri)
        yield lambda: None
    else:
        question = _Question(store, info, timeout, required=verify is True)
        try:
            yield question.answer if verify is True else question.answer_if_any
        finally:
            question.close()


class _Question:
    """The question for the store's checksum, under way."""

    def __init__(self, store: Store, info: ObjectInfo, timeout: float, *, required: bool) -> None:
        self._info = info
        self._timeout = timeout
        self._required = required
        self._connection = store.connect()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="torchwick-checksum")
        self._future = self._pool.submit(self._ask)

    def _ask(self) -> StoredChecksum | None:
        try:
            return self._connection.checksum(self._info)
        except TRANSIENT as error:
            if isinstance(error, StoreError) and not error.retryable:
                raise
            self._connection.reset()
        return self._connection.checksum(self._info)

    def answer(self) -> Expected:
        """Return what the store keeps.

        Raises:
            StoreError: it does not say.
            IntegrityError: it keeps nothing.
        """
        try:
            stored = self._future.result(self._timeout)
        except TRANSIENT as error:
            if isinstance(error, StoreError) and not error.retryable:
                raise
            hint = "Load it again, or with verify='auto', which does without."
            said = error.message if isinstance(error, StoreError) else str(error) or "no answer came in time"
            raise TransferError(
                f"its checksum could not be had: {said}", uri=self._info.uri, hint=hint, attempts=2
            ) from error
        if stored is None:
            raise nothing_kept(self._info.uri)
        return StoredSums(stored, self._required)

    def answer_if_any(self) -> Expected | None:
        """Return what the store keeps, or None if it keeps nothing or does not say."""
        try:
            return self.answer()
        except ObjectChangedError:
            raise
        except (StoreError, IntegrityError) as error:
            # As text: a record that kept the error would keep its frames, and with them the store.
            _log.info("not verified: %s", str(error))
            return None

    def close(self) -> None:
        """End the question, answered or not."""
        if not self._future.done():
            self._connection.abort()
        self._pool.shutdown()
        self._connection.release()


def nothing_kept(uri: URI) -> IntegrityError:
    """Return the error for an object that has to be verified, and cannot be."""
    hint = "Pass sha256=, or verify='auto'; or store it on S3 anew: its checksums are kept since 2024."
    return IntegrityError("there is no checksum to verify it by", uri=uri, hint=hint)


def read_differently(uri: URI, name: str) -> IntegrityError:
    """Return the error for bytes that were used, and are others than those that were verified later."""
    return IntegrityError(
        f"bytes that were read twice differ, and the second have the right {name}",
        uri=uri,
        hint=_AGAIN,
        algorithm=name,
    )


def unverifiable(uri: URI) -> IntegrityError:
    """Return the error for an object that was read in a way that does not allow for its checksum."""
    hint = "Pass sha256=, or verify='auto'."
    message = "the server does not send it in pieces whose checksum could be compared"
    return IntegrityError(message, uri=uri, hint=hint)


def parse_sha256(text: str | None) -> str | None:
    """Return a SHA-256 as `hashlib` writes it.

    Raises:
        ValueError: it is none.

    Example:
        >>> parse_sha256("AB" * 32) == "ab" * 32
        True
    """
    if text is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise ValueError(f"sha256 must be 64 hexadecimal digits, not {text!r}")
    return None if text is None else text.lower()
