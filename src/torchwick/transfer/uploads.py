"""Uploads objects in parts, from the memory they are in, and lets them appear only when all are there.

Whatever ends a group before that, an error or Ctrl-C, it ends with every connection aborted, every thread
joined, and then every upload aborted, so that nothing stays.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import types
from collections.abc import Callable, Iterator
from typing import Self

from torchwick.config import PutOptions, TransferConfig
from torchwick.errors import StoreError, TorchwickError, URIError
from torchwick.store import Multipart, WritableStore, Writer
from torchwick.transfer.appearance import Appearance
from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import algorithm
from torchwick.transfer.crew import Crew
from torchwick.transfer.cutting import LARGEST_OBJECT, Cut, parts_of
from torchwick.transfer.insist import Insistent
from torchwick.transfer.retry import Retry
from torchwick.transfer.sender import Outgoing
from torchwick.transfer.tally import Tally
from torchwick.transfer.upload import Receipt, Upload
from torchwick.uri import URI

__all__ = ["Uploads"]

_log = logging.getLogger("torchwick")

_MOST_KEPT = 64 << 20  # bytes of small objects that are held until all appear; more go ahead, in parts
_ABORTS = 4  # times that an abort is tried: whoever pressed Ctrl-C waits for it
_CRC64NVME = "crc64nvme"
_REMAINS = (
    "An incomplete upload remains there, and is billed for: abort it (`aws s3api abort-multipart-upload "
    "--upload-id {id}`), or let the bucket's lifecycle rule AbortIncompleteMultipartUpload do so"
)
_MAY_HAVE_BEGUN = (
    "an upload may have been begun, and the answer with its name was lost: the bucket's lifecycle rule "
    "AbortIncompleteMultipartUpload clears it"
)
_IS_THERE = "the answer that it was written did not come, but it is there"
_MAY_BE_THERE = "the answer that it was written did not come, and it may be there"


class Uploads:
    """A group of objects that are uploaded together.

    A context manager: what is not complete at its end is gone.

    Args:
        store: where to.
        config: how fast, and with how much memory.
        options: what is said about each object.
        on_progress: called on the calling thread about ten times a second with (bytes sent, connections).

    Example:
        >>> def save(store: WritableStore, uri: URI, data: bytes) -> Receipt:
        ...     with Uploads(store, TransferConfig()) as uploads:
        ...         upload = uploads.begin(uri, len(data), overwrite=False)
        ...         upload.write(data)
        ...         upload.end()
        ...         return uploads.complete()[0]
    """

    def __init__(
        self,
        store: WritableStore,
        config: TransferConfig,
        options: PutOptions | None = None,
        on_progress: Callable[[int, int], object] | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._options = options or PutOptions()
        self._budget = Budget(config)
        self._insistent = Insistent(self._make_writer, config, self._budget)
        self._how = algorithm(_CRC64NVME)
        self._crew = Crew(
            self._make_writer,
            config,
            secure=store.secure,
            how=self._how,
            budget=self._budget,
            on_progress=on_progress,
        )
        self._uploads: list[Upload] = []
        self._kept = 0
        self._aborts = _ABORTS

    @property
    def connections(self) -> int:
        """The most connections that were at work at once."""
        return self._crew.connections

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        try:
            self._crew.stop()
        finally:
            remarks = [remark for upload in self._uploads for remark in self._discard(upload)]
        if isinstance(error, TorchwickError):
            for remark in remarks:
                error.add_remark(remark)
        elif error is None and remarks:
            raise StoreError("an upload that was not completed could not be aborted", hint=remarks[0])

    def begin(self, uri: URI, size: int, *, overwrite: bool) -> Upload:
        """Begin to upload an object.

        Args:
            uri: its address.
            size: its bytes.
            overwrite: whether an object that is there may be replaced.

        Raises:
            URIError: the address is no object's, or one version's.
            StoreError: it is larger than S3 takes, or the store refused.
        """
        _check(uri, size)
        part_size = parts_of(size, self._config.part_size)
        tally, multipart = Tally(), None
        if size < part_size and self._kept + size <= _MOST_KEPT:
            self._kept += size
        else:
            multipart = self._insistent.ask(lambda writer: _begun(writer, uri), uri, tally)
        upload = Upload(uri, size, overwrite=overwrite, part_size=part_size, send=self._send)
        upload.multipart, upload.tally = multipart, tally
        self._uploads.append(upload)
        return upload

    def wait(self) -> None:
        """Return when the store has every part of what was written. Nothing is visible yet.

        Raises:
            StoreError: a part could not be sent.
        """
        self._crew.wait()

    def complete(self) -> list[Receipt]:
        """Let every object appear, in the order in which they were begun. Nothing can be begun after that.

        Raises:
            ValueError: of one of them not all was written.
            ObjectExistsError: there is something where nothing may be overwritten.
            IntegrityError: the store has other bytes than were sent.
            StoreError: the store refused. The objects before this one are there.
        """
        for upload in self._uploads:
            upload.check()
        self.wait()
        self._crew.leave()
        for upload in self._uploads:
            if upload.receipt is None:
                upload.receipt = self._complete(upload)
                self._crew.besides += upload.size if upload.multipart is None else 0
                self._crew.look(now=True)
        return [upload.receipt for upload in self._uploads if upload.receipt is not None]

    def delete(self, uri: URI) -> None:
        """Delete an object, or one version of it, whether there is one or not.

        Raises:
            StoreError: the store refused.
        """
        self._insistent.ask(lambda writer: writer.delete(uri), uri, Tally(), done="deleted")

    def _make_writer(self) -> Writer:
        return self._store.writer(self._options)

    def _send(self, upload: Upload, cut: Cut) -> None:
        """Have a part sent, or keep it where the object goes in one request."""
        if upload.multipart is None:
            upload.kept += cut.views
            return
        retry = Retry(upload.uri, cut.start, self._config.max_attempts, self._budget, "written")
        job = Outgoing(upload.multipart, cut, upload.arrivals, retry)
        self._crew.send(job, parts_of(upload.size, self._config.part_size))

    def _complete(self, upload: Upload) -> Receipt:
        """Let one object appear."""
        upload.appearing = upload.appearance(self._how)
        stored = upload.appearing.run(self._insistent, upload.tally)
        checksum = upload.checksum(self._how)
        kept = stored.checksum
        if kept is None and checksum is not None and self._store.takes_checksums:
            kept = self._asked_for(upload)
        upload.kept.clear()  # their memory may be wanted back
        tally, parts = upload.tally, upload.arrivals
        return Receipt(
            upload.uri,
            upload.size,
            stored.etag,
            stored.version,
            _CRC64NVME if kept is not None and kept == checksum else None,
            tally.requests + len(parts.parts) + parts.failures,
            tally.retries + parts.failures,
        )

    def _asked_for(self, upload: Upload) -> int | None:
        """Return the checksum that the store keeps, if it says so only when asked."""
        with contextlib.suppress(StoreError):
            found = self._insistent.ask(lambda writer: writer.find(upload.uri), upload.uri, upload.tally)
            return None if found is None or found.size != upload.size else found.checksum
        return None

    def _discard(self, upload: Upload) -> Iterator[str]:
        """Abort what was not completed, and yield what there is to say of what is left of it."""
        if upload.receipt is not None:
            return
        if upload.multipart is not None:
            try:
                self._abort(upload, upload.multipart)
            except TorchwickError as error:
                self._aborts = 1  # of many uploads, the others are not waited for as long
                remark = _REMAINS.format(id=upload.multipart.id)
                _log.warning("%s: %s. %s", upload.uri, error.message, remark)
                yield remark
        if upload.appearing is not None and upload.appearing.unsure:
            found = self._after_all(upload, upload.appearing)
            if found is not None:
                _log.warning("%s: %s", upload.uri, found)
                yield f"{upload.uri}: {found}"

    def _abort(self, upload: Upload, multipart: Multipart) -> None:
        """Abort an upload in parts.

        Raises:
            StoreError: it could not be done.
        """
        again = self._crew.broke_off

        def send(writer: Writer) -> None:
            writer.reset()  # a line of the senders' would do, but for the failure that may have ended it
            if writer.discard(multipart) and again:
                # A part that was broken off may have arrived after the abort; the second finds nothing.
                writer.discard(multipart)

        self._insistent.ask(send, upload.uri, upload.tally, done="aborted", most=self._aborts)

    def _after_all(self, upload: Upload, appearing: Appearance) -> str | None:
        """Say what became of an object whose writing was broken off; None: it is not there."""
        try:
            there = self._insistent.ask(appearing.is_there, upload.uri, upload.tally, most=self._aborts)
        except TorchwickError:
            return _MAY_BE_THERE
        return _IS_THERE if there else None


def _check(uri: URI, size: int) -> None:
    """Refuse what cannot be uploaded."""
    if uri.scheme != "s3" or uri.version is not None or uri.is_directory:
        hint = "Name an object: s3://bucket/key."
        raise URIError("it cannot be written to", uri=uri, hint=hint)
    if size > LARGEST_OBJECT:
        hint = "Write it in several objects."
        raise StoreError(f"{size} bytes are more than S3 takes in one object", uri=uri, hint=hint)


def _begun(writer: Writer, uri: URI) -> Multipart:
    """Begin an upload, and leave word where nobody knows whether one was begun: its name is in the answer."""
    try:
        return writer.begin(uri)
    except (StoreError, ConnectionRefusedError, socket.gaierror, ssl.SSLError):
        raise
    except BaseException:
        _log.warning("%s: %s", uri, _MAY_HAVE_BEGUN)
        raise
