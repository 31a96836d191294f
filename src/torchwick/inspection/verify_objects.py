"""Has the objects of a checkpoint pass by all who look at them, and collects what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from torchwick.checkpoint.objects import Objects
from torchwick.checkpoint.verification import PinnedDigest, StoredSums, expecting
from torchwick.errors import IntegrityError, ObjectChangedError, StoreError
from torchwick.formats.catalog import Catalog, Piece
from torchwick.formats.torch_zip import read_archive
from torchwick.inspection.verify import NotFinite, Verification, VerifiedObject
from torchwick.inspection.verify_drain import Passage, Watched, drain
from torchwick.inspection.verify_looks import Landmarks, RecordSums, landmarks_of
from torchwick.report import Progress, ProgressCallback

if TYPE_CHECKING:
    from torchwick.inspection.verify_finite import Finite

__all__ = ["Verifier"]

_AT_ONCE = 16  # objects whose checksums are asked for at the same time


class Verifier:
    """Verifies one checkpoint, once.

    Args:
        catalog: where its tensors are.
        objects: where that is.
        sha256: the digest of the one object there is, or None.
        finite: whether NaN and Inf are looked for.
    """

    def __init__(self, catalog: Catalog, objects: Objects, *, sha256: str | None, finite: bool) -> None:
        self._catalog = catalog
        self._objects = objects
        self._pinned = None if sha256 is None else PinnedDigest(sha256)
        self._finite = _finite(catalog, objects) if finite else None
        self._stored: dict[str, tuple[StoredSums | None, str | None]] = {}
        self._looks: dict[str, tuple[Landmarks, RecordSums | None]] = {}

    def run(self, on_progress: ProgressCallback | None) -> Verification:
        """Read everything, and return what was found.

        Raises:
            StoreError: an object cannot be read.
        """
        names = self._objects.names
        with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="torchwick-verify") as pool:
            self._stored = dict(zip(names, pool.map(self._ask, names), strict=True))
        passages = {name: Passage(self._objects[name].info, self._watching(name)) for name in names}
        told = self._told(on_progress)
        drain(list(passages.values()), self._objects, told)
        told(sum(passage.seen for passage in passages.values()), 0)
        counts = None if self._finite is None else self._finite.counts()
        tally = self._objects.tally
        return Verification(
            uri=str(self._objects.uri),
            format=self._catalog.format,
            tensors=len(self._catalog.entries),
            objects=tuple(self._found(name, passage) for name, passage in passages.items()),
            not_finite=None if counts is None else _not_finite(self._catalog, counts),
            bytes_read=tally.bytes_read,
            requests=tally.requests,
        )

    def _ask(self, name: str) -> tuple[StoredSums | None, str | None]:
        """Return the checksums that the store keeps of an object, or why there are none."""
        objects, info = self._objects, self._objects[name].info
        try:
            with expecting(objects.store, info, objects.config.timeout, verify=True, sha256=None) as answer:
                stored = answer()
        except ObjectChangedError:
            raise
        except IntegrityError:
            return None, "the store keeps no checksum"
        except StoreError as error:
            return None, f"the store does not tell its checksum: {error.message}"
        assert isinstance(stored, StoredSums)  # noqa: S101 - for mypy: no digest was given
        return stored, None

    def _watching(self, name: str) -> Callable[[], Watched]:
        def watch() -> Watched:
            landmarks, records = self._looks[name] = self._structure(name)
            finite = None if self._finite is None else self._finite.look(name)
            looks = [look for look in (landmarks, records, finite) if look is not None]
            return Watched(looks, self._stored[name][0], self._pinned)

        return watch

    def _structure(self, name: str) -> tuple[Landmarks, RecordSums | None]:
        """Return who looks whether an object is put together as it says."""
        cache = self._objects[name]
        if self._catalog.format in ("torch zip", "TorchScript") and cache.info.size is not None:
            archive = read_archive(cache.read, cache.info.size, cache.info.uri)
            return Landmarks(landmarks_of(archive)), RecordSums(archive)
        pieces = (piece for entry in self._catalog.entries.values() for piece in entry.pieces)
        found = [p.landmark for p in pieces if isinstance(p, Piece) and p.object == name]
        return Landmarks(landmark for landmark in found if landmark is not None), None

    def _told(self, on_progress: ProgressCallback | None) -> Callable[[int, int], object]:
        uri, total = str(self._objects.uri), self._objects.size

        def tell(done: int, connections: int) -> None:
            if on_progress is not None:
                on_progress(Progress(uri, done, done if total is None else total, connections))

        return tell

    def _found(self, name: str, passage: Passage) -> VerifiedObject:
        landmarks, records = self._looks[name]
        stored, reason = self._stored[name]
        checksums = [expected.name for expected in (self._pinned, stored) if expected is not None]
        in_records = records.problems() if records else []
        return VerifiedObject(
            uri=str(passage.info.uri),
            size=passage.seen,
            etag=passage.info.etag,
            checksums=tuple(checksums),
            records=bool(records),
            unverified=None if checksums else reason,
            problems=(*passage.mismatches(), *landmarks.problems(), *in_records),
        )


def _finite(catalog: Catalog, objects: Objects) -> Finite:
    from torchwick.inspection.verify_finite import Finite  # imports torch

    return Finite(catalog, objects)


def _not_finite(catalog: Catalog, counts: Mapping[str, Sequence[int]]) -> tuple[NotFinite, ...]:
    """Return the tensors with anything to count, in the order of the checkpoint."""
    return tuple(
        NotFinite(name, entry.dtype, *counts[name])
        for name, entry in catalog.entries.items()
        if any(counts.get(name, ()))
    )
