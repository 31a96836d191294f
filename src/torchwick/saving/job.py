"""A save, from the wish to the report: drafted first, with a look at what is there, and then run."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torchwick.checkpoint.progress import watched
from torchwick.config import PutOptions, S3Config, TransferConfig, parse_size
from torchwick.errors import ObjectExistsError
from torchwick.report import ProgressCallback, SaveReport
from torchwick.saving.destination import INDEX, WHOLE, Destination, Standing, save_destination
from torchwick.saving.files import Content, Draft
from torchwick.saving.writing import write

__all__ = ["Job", "Wishes", "begin"]

_log = logging.getLogger("torchwick")


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How an object is to be saved; see `torchwick.save`."""

    metadata: Mapping[str, str] | None = None
    overwrite: bool = True
    max_shard_size: int | str | None = None
    options: PutOptions | None = None
    delete_replaced: bool = False
    s3: S3Config | None = None
    transfer: TransferConfig | None = None


@dataclass(frozen=True)
class Job:
    """A save that only has to be run.

    Attributes:
        draft: what is written.
        to: where to.
        wishes: how.
        outdated: what is deleted at the end.
        started: when it was asked for, by `time.perf_counter`.
    """

    draft: Draft
    to: Destination
    wishes: Wishes
    outdated: tuple[str, ...]
    started: float

    def contents(self) -> Iterator[Content]:
        """Yield the bytes of each tensor, from its own memory."""
        from torchwick.saving.elements import elements

        return (elements(tensor, tensor.dtype) for tensor in self.draft.tensors)

    def run(self, contents: Iterator[Content], progress: bool | ProgressCallback) -> SaveReport:
        """Write all of it.

        Args:
            contents: the bytes of each tensor, in order.
            progress: True for a bar, or a function.

        Raises:
            StoreError: it cannot be written.
        """
        with watched(progress) as on_progress:
            written = write(
                self.draft.files,
                contents,
                self.to,
                overwrite=self.wishes.overwrite,
                outdated=self.outdated,
                options=self.wishes.options,
                on_progress=on_progress,
            )
        report = SaveReport(
            uri=str(self.to.uri),
            format=self.draft.format,
            files=written.files,
            deleted=tuple(f"{self.to.directory}{name}" for name in self.outdated),
            tensors=sum(file.tensors for file in written.files),
            size=written.size,
            requests=written.requests,
            retries=written.retries,
            connections=written.connections,
            seconds=time.perf_counter() - self.started,
            verified=written.verified,
        )
        _log.info("saved %s: %d tensors, %d bytes", report.uri, report.tensors, report.size)
        return report


def begin(
    drafted: Callable[[Destination, int | None, Mapping[str, str]], Draft],
    uri: str | os.PathLike[str],
    wishes: Wishes,
) -> Job:
    """Draft a save, and look at what is there.

    Args:
        drafted: makes the draft: for a destination, with the most bytes of one file, and metadata.
        uri: where to.
        wishes: how.

    Raises:
        Exception: see `torchwick.save`. Nothing was written.
    """
    started = time.perf_counter()
    most = None if wishes.max_shard_size is None else parse_size(wishes.max_shard_size)
    to = save_destination(uri, wishes.s3, wishes.transfer, sharded=most is not None)
    draft = drafted(to, most, wishes.metadata or {})
    return Job(draft, to, wishes, _outdated(draft, to, wishes), started)


def _outdated(draft: Draft, to: Destination, wishes: Wishes) -> tuple[str, ...]:
    """Return what is to be deleted when the new files are there.

    Raises:
        ObjectExistsError: something may not be replaced, or would be taken for the new model.
    """
    if to.file is not None:
        if not wishes.overwrite:
            to.refuse_present()
        return ()
    standing = to.standing()
    if standing and not wishes.overwrite:
        to.refuse(WHOLE if standing.whole else INDEX)
    stale = _stale(standing, {file.name for file in draft.files})
    if stale is not None and not wishes.delete_replaced:
        raise ObjectExistsError(
            f"{stale} is there already, and what is saved now is in other files: readers could go on with "
            "the old model",
            uri=to.uri,
            hint="Pass delete_replaced=True to have the old one deleted when the new one is there, or save "
            "to another directory.",
        )
    return _replaced(standing, draft) if wishes.delete_replaced else ()


def _stale(standing: Standing, names: set[str]) -> str | None:
    """Return what some reader would go on to read, though the new files are there."""
    if standing.whole and WHOLE not in names:
        return WHOLE
    if standing.index and INDEX not in names:
        return INDEX
    return None


def _replaced(standing: Standing, draft: Draft) -> tuple[str, ...]:
    there = [*([WHOLE] if standing.whole else []), *([INDEX] if standing.index else []), *standing.shards]
    new = {file.name for file in draft.files}
    return tuple(name for name in dict.fromkeys(there) if name not in new)
