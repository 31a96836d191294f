"""Writes files to where they belong, and tells what became of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchwick.config import PutOptions
from torchwick.report import Progress, ProgressCallback, SavedFile
from torchwick.saving.destination import Destination
from torchwick.saving.files import Content, File
from torchwick.saving.sink import LocalFolder, Sink

__all__ = ["Written", "write"]

_BETWEEN_CALLS = 0.1  # seconds


@dataclass(frozen=True)
class Written:
    """What became of files.

    Attributes:
        files: as they are now, in the order in which they were written.
        requests: requests sent.
        retries: requests that repeated a failed one.
        connections: the most connections open at once.
        verified: the checksum that the server confirmed for every file, or None.
    """

    files: tuple[SavedFile, ...]
    requests: int = 0
    retries: int = 0
    connections: int = 0
    verified: str | None = None

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(file.size for file in self.files)


class _Counter:
    """Tells how far it has come, about ten times a second and at the end."""

    def __init__(self, uri: str, total: int, on_progress: ProgressCallback | None) -> None:
        self._uri = uri
        self._total = total
        self._done = 0
        self._told = 0.0
        self._on_progress = on_progress

    def sent(self, done: int, connections: int) -> None:
        """Tell how many bytes were sent, as a folder in S3 does by itself."""
        self._done = done
        if self._on_progress:
            self._on_progress(Progress(self._uri, done, self._total, connections))

    def add(self, size: int) -> None:
        """Count bytes that were written."""
        self._done += size
        now = time.monotonic()
        if self._on_progress and (self._done == self._total or now - self._told > _BETWEEN_CALLS):
            self._told = now
            self._on_progress(Progress(self._uri, self._done, self._total, 0))

    def end(self) -> None:
        """Tell that all of it is there."""
        if self._on_progress and self._done < self._total:
            self._on_progress(Progress(self._uri, self._total, self._total, 0))


class _CountedSink:
    def __init__(self, sink: Sink, counter: _Counter) -> None:
        self._sink = sink
        self._counter = counter

    def write(self, data: memoryview | bytes) -> None:
        self._sink.write(data)
        self._counter.add(len(data))


def write(
    files: Sequence[File],
    contents: Iterator[Content],
    to: Destination,
    *,
    overwrite: bool,
    outdated: Sequence[str] = (),
    options: PutOptions | None = None,
    on_progress: ProgressCallback | None = None,
) -> Written:
    """Write files one after the other, and let them appear together.

    Args:
        files: what is written.
        contents: the bytes of the tensors of all of them, in order.
        to: where to.
        overwrite: whether files of these names may be replaced.
        outdated: files of other names, which are deleted when the new ones are there.
        options: what S3 is told about each.
        on_progress: called with a `Progress` about ten times a second.

    Raises:
        ObjectExistsError: a file of such a name is there, and may not be replaced.
        StoreError: they cannot be written. Nothing is left of them.
    """
    counter = _Counter(str(to.uri), sum(file.size for file in files), on_progress)
    if to.directory.scheme == "s3":
        return _upload(files, contents, to, counter, overwrite=overwrite, outdated=outdated, options=options)
    with LocalFolder(to.directory, overwrite=overwrite) as folder:
        folder.reserve(sum(file.size for file in files))
        for file in files:
            with folder.create(file.name, file.size) as sink:
                file.write(_CountedSink(sink, counter), contents)
        folder.commit(outdated)
    return Written(tuple(SavedFile(f"{to.directory.key}{f.name}", f.size, f.tensors) for f in files))


def _upload(
    files: Sequence[File],
    contents: Iterator[Content],
    to: Destination,
    counter: _Counter,
    *,
    overwrite: bool,
    outdated: Sequence[str],
    options: PutOptions | None,
) -> Written:
    from torchwick.saving.s3_folder import S3Folder  # and with it all that moves bytes

    with S3Folder(
        to.directory,
        overwrite=overwrite,
        s3=to.s3,
        transfer=to.transfer,
        options=options,
        on_progress=counter.sent,
    ) as folder:
        for file in files:
            with folder.create(file.name, file.size) as sink:
                file.write(sink, contents)
        folder.commit(outdated)
    counter.end()
    receipts = [folder.receipts[file.name] for file in files]
    checksums = {receipt.checksum for receipt in receipts}
    return Written(
        tuple(
            SavedFile(str(receipt.uri), receipt.size, file.tensors, receipt.etag, receipt.version)
            for file, receipt in zip(files, receipts, strict=True)
        ),
        requests=sum(receipt.requests for receipt in receipts),
        retries=sum(receipt.retries for receipt in receipts),
        connections=max(1, folder.connections),
        verified=checksums.pop() if len(checksums) == 1 else None,
    )
