"""One object being loaded: what is known of it, and the way to fetch the rest."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import BinaryIO

from torchwick.checkpoint.verification import Expected, PinnedDigest, read_differently
from torchwick.config import TransferConfig
from torchwick.errors import MemoryLimitError
from torchwick.loading.whole import complete
from torchwick.report import Progress, ProgressCallback
from torchwick.store import ObjectInfo, Store
from torchwick.store.local import LocalStore
from torchwick.transfer import Fill, Listed, Part, RangeCache, Tally, Transfer, plan, read_stream
from torchwick.uri import URI

__all__ = ["Source"]

_WORTH_READING = 1 << 20  # bytes of an object that are read for nothing but to verify it, unless asked to
_DIGESTED = 1 << 20  # bytes at once
_log = logging.getLogger("torchwick")


class Source:
    """An object, pinned to the version that its first bytes came from.

    Args:
        store: where it is.
        uri: its address.
        config: how to move its bytes.
        on_progress: called about ten times a second, or None.

    Raises:
        StoreError: it cannot be read.
    """

    def __init__(
        self, store: Store, uri: URI, config: TransferConfig, on_progress: ProgressCallback | None
    ) -> None:
        self.uri = uri
        self.config = config
        self._store = store
        self._on_progress = on_progress
        self._filled = Tally()
        self.cache = RangeCache(store, uri, config)
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
        expected = self.expected()
        if expected is None or not self._verify(expected, fills):
            self._transfer(plan(self.info, fills, self.config.part_size))

    def _verify(self, expected: Expected, fills: Sequence[Fill]) -> bool:
        """Fill as part of the whole object, and hold that against what is expected.

        Returns:
            False, and nothing is filled, where that would cost more than it is worth.
        """
        if len(expected.stops) > 1 and not self.info.ranged:  # of one stream there is one checksum
            return False
        whole = complete(fills, self.cache, self.info.size, expected.stops)
        if whole is None or (whole.extra > _WORTH_READING and not expected.required):
            _log.info("%s: not verified: it is read in part only", self.uri)
            return False
        self._check_memory(whole.extra)
        parts = plan(self.info, whole.fills, self.config.part_size, expected.stops)
        witness = expected.witness({part.start: part.buffers for part in parts} | whole.known)
        for start, pieces in whole.known.items():
            for data in pieces:
                witness.arrived(start, start + len(data), witness.update(data, 0))
        self._transfer([replace(part, witness=witness) for part in parts])
        expected.check(witness, self.uri)
        if any(before != now for before, now in whole.again):
            raise read_differently(self.uri, expected.name)
        self.verified = expected.name
        return True

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

    def _transfer(self, parts: Sequence[Part]) -> None:
        total = sum(map(len, parts))
        self._filled += Transfer(
            self._store,
            Listed(parts),
            self.config,
            lambda done, connections: self._tell(done, total, connections),
            budget=self.cache.budget,
        ).run()
        self._tell(total, total, 0)

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
        file = Source(LocalStore(), URI("file", "", path), self.config, None)
        file.uri = self.uri
        return file

    def _tell(self, done: int, total: int, connections: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(str(self.uri), done, total, connections))


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while data := file.read(_DIGESTED):
        digest.update(data)
    return digest.hexdigest()
