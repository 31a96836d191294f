"""A directory in S3 whose objects appear together at the end, in the order in which they were begun."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Self

from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.errors import StoreError
from torchwick.saving.sink import Sink
from torchwick.store import open_writable
from torchwick.transfer import Receipt, Upload, Uploads
from torchwick.uri import URI

__all__ = ["S3Folder"]


class S3Folder:
    """Keys of one prefix; see `torchwick.saving.sink.Folder`.

    What is written to a sink is not copied: it has to stay as it is until `commit` returns.

    Args:
        uri: the directory.
        overwrite: whether objects of the names that are written may be replaced.
        s3: who asks, and which S3.
        transfer: how fast, and with how much memory.
        options: what is said about each object.
        on_progress: called on the calling thread about ten times a second with (bytes sent, connections).

    Attributes:
        receipts: what was uploaded, by its name; filled by `commit`.
    """

    def __init__(
        self,
        uri: URI,
        *,
        overwrite: bool,
        s3: S3Config | None = None,
        transfer: TransferConfig | None = None,
        options: PutOptions | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> None:
        config = transfer or TransferConfig()
        self.receipts: dict[str, Receipt] = {}
        self._uri = uri.as_directory()
        self._overwrite = overwrite
        self._uploads = Uploads(
            open_writable(uri, s3 or S3Config(), config.timeout), config, options, on_progress
        )
        self._begun: dict[str, Upload] = {}
        self._committed = False

    @property
    def connections(self) -> int:
        """The most connections that were at work at once."""
        return self._uploads.connections

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        try:
            self._uploads.__exit__(kind, error, traceback)
        finally:
            if not self._committed and not self._overwrite:
                self._take_back(error)

    def reserve(self, size: int) -> None:
        """Let it be: S3 has room, and says of each object whether it is too large; see `create`."""

    @contextlib.contextmanager
    def create(self, name: str, size: int) -> Iterator[Sink]:
        """Begin an object; see `Folder`."""
        upload = self._uploads.begin(self._uri.child(name), size, overwrite=self._overwrite)
        self._begun[name] = upload
        yield upload
        upload.end()

    def commit(self, outdated: Sequence[str] = ()) -> None:
        """Let the objects appear, then delete what is outdated; see `Folder`."""
        receipts = self._uploads.complete()
        self.receipts = dict(zip(self._begun, receipts, strict=True))
        self._committed = True
        for name in outdated:
            self._delete_outdated(name)

    def _delete_outdated(self, name: str) -> None:
        try:
            self._uploads.delete(self._uri.child(name))
        except StoreError as error:
            raise StoreError(
                f"all that was written is in place, but an old object could not be deleted: {error.message}",
                uri=self._uri.child(name),
                hint=f"Delete it, and whatever else is outdated. {error.hint or ''}".strip(),
                code=error.code,
                request_id=error.request_id,
                identity=error.identity,
            ) from error

    def _take_back(self, error: BaseException | None) -> None:
        """Delete the objects that had appeared before one of them could not."""
        for upload in self._begun.values():
            if upload.receipt is None:
                continue
            try:
                # In a bucket with versions that one, so that what was there before is seen again.
                self._uploads.delete(replace(upload.uri, version=upload.receipt.version))
            except StoreError as failure:
                if isinstance(error, StoreError):
                    error.add_remark(f"{upload.uri} is there already and could not be deleted again")
                else:
                    raise failure from error
