"""The objects that a checkpoint is made of, each pinned to the version that was seen when it was opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from torchwick.config import TransferConfig
from torchwick.formats.catalog import Landmark
from torchwick.store import Store
from torchwick.transfer import Listed, Part, RangeCache, Tally, Transfer, choose_part_size
from torchwick.uri import URI

__all__ = ["Objects"]


class Objects:
    """A checkpoint's objects by name.

    Args:
        uri: the checkpoint.
        store: where its objects are.
        config: how their bytes are moved.
        caches: what is known of each so far; one object alone has the empty name.
    """

    def __init__(
        self, uri: URI, store: Store, config: TransferConfig, caches: Mapping[str, RangeCache]
    ) -> None:
        self.uri = uri
        self.store = store
        self.config = config
        self._caches = caches
        self._seen: set[tuple[str, int]] = set()
        self._spent = Tally()
        self._spending = threading.Lock()

    def __getitem__(self, name: str) -> RangeCache:
        return self._caches[name]

    @property
    def names(self) -> list[str]:
        """The names, in the order of the checkpoint."""
        return list(self._caches)

    @property
    def size(self) -> int | None:
        """Bytes of all of them; None where the server does not say."""
        sizes = [cache.info.size for cache in self._caches.values()]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def versions(self) -> list[tuple[str, int | None, str | None, str | None]]:
        """Name, size, tag and version of each: what tells them from what they are overwritten with."""
        infos = ((name, cache.info) for name, cache in self._caches.items())
        return [(name, info.size, info.etag, info.version) for name, info in infos]

    @property
    def tally(self) -> Tally:
        """What they have cost so far."""
        return sum((cache.tally for cache in self._caches.values()), self._spent)

    @property
    def spent(self) -> Tally:
        """What reads have cost since it was opened."""
        return self._spent

    def spend(self, tally: Tally) -> None:
        """Note what a read has cost, on whatever thread."""
        with self._spending:
            self._spent = self._spent + tally

    def part_size(self, total: int) -> int:
        """Return the bytes of a part for a read of so many in all."""
        return choose_part_size(total) if self.config.part_size == "auto" else self.config.part_size

    def transfer(
        self, parts: Sequence[Part], on_progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Read parts.

        Raises:
            StoreError: one could not be read.
        """
        if parts:
            self.spend(Transfer(self.store, Listed(parts), self.config, on_progress).run())

    @contextmanager
    def looking(self, name: str) -> Iterator[RangeCache]:
        """Look into an object once, and remember nothing of it."""
        info = self._caches[name].info
        cache = RangeCache(self.store, info.uri, self.config, info=info)
        try:
            yield cache
        finally:
            self.spend(cache.tally)

    def unseen(self, name: str, landmarks: Iterable[Landmark]) -> list[Landmark]:
        """Return those landmarks of an object that no one has found in their place yet."""
        return [landmark for landmark in landmarks if (name, landmark.start) not in self._seen]

    def saw(self, name: str, landmark: Landmark) -> None:
        """Note that a landmark was found in its place."""
        self._seen.add((name, landmark.start))
