"""One object being loaded: what is known of it, and the way to fetch the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import BinaryIO

from torchwick.config import TransferConfig
from torchwick.report import Progress, ProgressCallback
from torchwick.store import ObjectInfo, Store
from torchwick.store.local import LocalStore
from torchwick.transfer import Fill, RangeCache, Tally, Transfer, plan, read_stream
from torchwick.uri import URI

__all__ = ["Source"]


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

    @property
    def info(self) -> ObjectInfo:
        """The version being read."""
        return self.cache.info

    @property
    def tally(self) -> Tally:
        """What the load has cost so far."""
        return self.cache.tally + self._filled

    def fill(self, fills: Sequence[Fill]) -> None:
        """Read every range into its memory.

        Raises:
            StoreError: a range could not be read; the memory is then in no defined state.
        """
        parts = plan(self.info, fills, self.config.part_size)
        total = sum(map(len, parts))
        transfer = Transfer(self._store, parts, self.config, lambda done, n: self._tell(done, total, n))
        self._filled += transfer.run()
        self._tell(total, total, 0)

    def pour(self, file: BinaryIO, check: Callable[[int], None]) -> None:
        """Write the whole object into `file`: the way to read one whose size the server does not say.

        Args:
            file: where it goes.
            check: called with the bytes there so far; what it raises ends the reading.

        Raises:
            StoreError: it could not be read.
        """
        self._filled += read_stream(self._store, self.info, self.config, file, check)
        self.size = file.tell()

    def reopened(self, path: str) -> Source:
        """Return the same object as the file it was written into."""
        file = Source(LocalStore(), URI("file", "", path), self.config, None)
        file.uri = self.uri
        return file

    def _tell(self, done: int, total: int, connections: int) -> None:
        if self._on_progress is not None:
            self._on_progress(Progress(str(self.uri), done, total, connections))
