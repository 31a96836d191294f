"""One object being loaded: what is known of it, and the way to fetch the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO, Literal

from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.verification import Expected, PinnedDigest, StoredSums, read_differently
from torchwick.checkpoint.watch import Watch
from torchwick.config import TransferConfig
from torchwick.errors import MemoryLimitError
from torchwick.loading.whole import Range, Whole, complete
from torchwick.report import Progress, ProgressCallback
from torchwick.store import ObjectInfo, Store
from torchwick.store.local import LocalStore
from torchwick.transfer import Fill, Listed, Part, RangeCache, Tally, Transfer, Witness, plan, read_stream
from torchwick.uri import URI

__all__ = ["WORTH_READING", "Prepared", "Source"]

WORTH_READING = 1 << 20  # bytes of an object that are read for nothing but to verify it, unless asked to
_DIGESTED = 1 << 20  # bytes at once
_log = logging.getLogger("torchwick")


@dataclass(frozen=True)
class Prepared:
    """What brings the ranges that are wanted of an object, and what is to be done when all of it is there."""

    parts: Sequence[Part]
    finish: Callable[[], None] = lambda: None


class Source:
    """An object, pinned to the version that its first bytes came from.

    Args:
        store: where it is.
        cache: what is known of it.
        config: how to move its bytes.
        on_progress: called about ten times a second, or None.
    """

    def __init__(
        self, store: Store, cache: RangeCache, config: TransferConfig, on_progress: ProgressCallback | None
    ) -> None:
        self.uri = cache.info.uri
        self.config = config
        self.cache = cache
        self._store = store
        self._on_progress = on_progress
        self._filled = Tally()
        self.size = self.info.size
        """Bytes of the object; None as long as they are not known."""
        self.pinned = False
        """Whether the caller gave the digest of the file."""
        self.expected: Callable[[], Expected | None] = lambda: None
        """Tells what the bytes have to come to, if anything is known of that."""
        self.verified: str | None = None
        """The checksum that the bytes were held against, once they were."""

    @property
    def info(self) -> ObjectInfo:
        """The version being read."""
        return self.cache.info

    @property
    def tally(self) -> Tally:
        """What the load has cost so far."""
        return self.cache.tally + self._filled

    def fill(self, fills: Sequence[Fill]) -> None:
        """Read every range into its memory, and verify the object if there is something to verify it by.

        Raises:
            StoreError: a range could not be read; the memory is then in no defined state.
            IntegrityError: the bytes are not those that were stored, or pinned.
            MemoryLimitError: to verify it, more would have to be read beside the tensors than is allowed.
        """
        prepared = self.prepare(fills, self.config.part_size)
        total = sum(map(len, prepared.parts))
        self._filled += Transfer(
            self._store,
            Listed(prepared.parts),
            self.config,
            lambda done, connections: self.tell(done, total, connections),
            budget=self.cache.budget,
        ).run()
        self.tell(total, total, 0)
        prepared.finish()

    def prepare(self, fills: Sequence[Fill], part_size: int | Literal["auto"]) -> Prepared:
        """Return what reads every range, as part of the whole object where that is to be verified.

        Raises:
            IntegrityError: it has to be verified, and nothing is known of it; the same if it turns out to be
                another, when it is finished.
            MemoryLimitError: to verify it, more would have to be read beside the tensors than is allowed.
        """
        expected = self.expected()
        whole = None if expected is None else self._whole(expected, [(f.start, f.stop) for f in fills])
        if expected is None or whole is None:
            return Prepared(plan(self.info, fills, part_size))
        whole, everything = whole.fills(fills, ranged=self.info.ranged)
        parts = plan(self.info, everything, part_size, expected.stops)
        witness = expected.witness({part.start: part.buffers for part in parts} | whole.known)
        _show(witness, whole)
        seen = [replace(part, witness=witness) for part in parts]
        return Prepared(seen, partial(self._check, expected, witness, whole))

    def watch(self, wanted: Iterable[Range]) -> Watch:
        """Return what sees the bytes of a stream, and the ranges to be read besides so that it sees all.

        A digest by the caller takes the bytes in order, which a stream does not bring: it is not watched.

        Raises:
            IntegrityError: it has to be verified, and nothing is known of it.
            MemoryLimitError: see `prepare`.
        """
        expected = self.expected()
        whole = None if not isinstance(expected, StoredSums) else self._whole(expected, wanted)
        if not isinstance(expected, StoredSums) or whole is None:
            return Watch()
        witness = expected.witness(whole.known)
        _show(witness, whole)
        return Watch(witness, whole.missing, expected.stops, partial(self._check, expected, witness, whole))

    def _whole(self, expected: Expected, wanted: Iterable[Range]) -> Whole | None:
        """Return the rest of the object, or None where to read it would cost more than it is worth."""
        if len(expected.stops) > 1 and not self.info.ranged:  # of one stream there is one checksum
            return None
        whole = complete(wanted, self.cache, self.info.size, expected.stops)
        if whole is None or (whole.extra > WORTH_READING and not expected.required):
            _log.info("%s: not verified: it is read in part only", self.uri)
            return None
        self._check_memory(whole.extra)
        return whole

    def _check(self, expected: Expected, witness: Witness, whole: Whole) -> None:
        expected.check(witness, self.uri)
        if any(before != now for before, now in whole.again):
            raise read_differently(self.uri, expected.name)
        self.verified = expected.name

    def _check_memory(self, extra: int) -> None:
        limit = self.config.memory_bytes()
        if extra > limit:
            raise MemoryLimitError(
                f"to verify it, {extra} bytes that no tensor holds are needed; the memory limit is {limit}",
                uri=self.uri,
                hint="Raise TransferConfig.memory_limit, or pass verify='auto'.",
                needed=extra,
                limit=limit,
            )

    def pour(self, file: BinaryIO, check: Callable[[int], None]) -> None:
        """Write the whole object into `file`: the way to read one whose size the server does not say.

        Args:
            file: where it goes.
            check: called with the bytes there so far; what it raises ends the reading.

        Raises:
            StoreError: it could not be read.
            IntegrityError: the bytes are not those that were pinned.
        """
        budget = self.cache.budget
        self._filled += read_stream(self._store, self.info, self.config, file, check, budget=budget)
        self.size = file.tell()
        expected = self.expected()
        if isinstance(expected, PinnedDigest):
            expected.compare(_digest(file), self.uri)
            self.verified = expected.name

    def reopened(self, path: str) -> Source:
        """Return the same object as the file it was written into."""
        store = LocalStore()
        file = Source(store, RangeCache(store, URI("file", "", path), self.config), self.config, None)
        file.uri = self.uri
        return file

    def objects(self) -> Objects:
        """Return it as the one object of a checkpoint."""
        return Objects(self.uri, self._store, self.config, {"": self.cache})

    def spend(self, tally: Tally) -> None:
        """Note what a read by other means has cost."""
        self._filled += tally

    def tell(self, done: int, total: int, connections: int) -> None:
        """Say how far it has come, if anyone wants to hear it."""
        if self._on_progress is not None:
            self._on_progress(Progress(str(self.uri), done, total, connections))


def _show(witness: Witness, whole: Whole) -> None:
    """Have a witness see what is known already."""
    for start, pieces in whole.known.items():
        for data in pieces:
            witness.arrived(start, start + len(data), witness.update(data, 0))


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while data := file.read(_DIGESTED):
        digest.update(data)
    return digest.hexdigest()
