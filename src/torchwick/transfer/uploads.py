"""Uploads objects in parts, from the memory they are in, and lets them appear only when all are there.

The caller writes; senders on threads of their own each own a connection and take one part after the other
from the outbox, which holds a bounded number of bytes. While the caller writes or waits, it watches: senders
are started and called back, and the first failure is raised. Whatever ends an upload before it was completed,
it ends with every connection aborted, every thread joined, and then every upload aborted, so that nothing
stays.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import http.client
import logging
import time
import types
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Self

from torchwick.config import PutOptions, TransferConfig
from torchwick.errors import StoreError, TorchwickError, URIError
from torchwick.store import Multipart, WritableStore, Writer
from torchwick.transfer.appearance import Appearance, Expected, etag_of_parts
from torchwick.transfer.budget import Budget
from torchwick.transfer.checksum import Algorithm, algorithm, fold
from torchwick.transfer.cutting import LARGEST_OBJECT, Cut, Cutter, parts_of
from torchwick.transfer.insist import Insistent
from torchwick.transfer.meter import Meter
from torchwick.transfer.outbox import Outbox
from torchwick.transfer.pace import Pace, Reading
from torchwick.transfer.retry import Retry
from torchwick.transfer.sender import Arrivals, Outgoing, Sender
from torchwick.transfer.tally import Tally
from torchwick.transfer.threads import Threads
from torchwick.uri import URI

__all__ = ["Receipt", "Upload", "Uploads"]

_log = logging.getLogger("torchwick")

_TICK = 0.1  # seconds between looks at the senders
_AHEAD = 2  # parts for each connection that may wait or be on their way: the next is there when one is sent
_TELLING = 2  # parts for each connection that have to arrive for a rate
_MOST_KEPT = (
    64 << 20
)  # bytes of small objects that are held until all appear; more of them go ahead, in parts
_ABORTS = 4  # times that an abort is tried: whoever pressed Ctrl-C waits for it
_CRC64NVME = "crc64nvme"
_REMAINS = (
    "An incomplete upload remains there, and is billed for: abort it (`aws s3api abort-multipart-upload "
    "--upload-id {id}`), or let the bucket's lifecycle rule AbortIncompleteMultipartUpload do so"
)
_IS_THERE = "the answer that it was written did not come, but it is there"
_MAY_BE_THERE = "the answer that it was written did not come, and it may be there"


@dataclass(frozen=True)
class Receipt:
    """An object that was uploaded.

    Attributes:
        uri: its address.
        size: its bytes.
        etag: its tag, or None where the server gave none.
        version: its S3 version, or None in a bucket without versions.
        checksum: ``"crc64nvme"`` where the server confirmed that of the whole object, else None.
        requests: how many it took.
        retries: how many of them were sent because one had failed.
    """

    uri: URI
    size: int
    etag: str | None
    version: str | None
    checksum: str | None
    requests: int
    retries: int


class Uploads:
    """A group of objects that are uploaded together.

    A context manager: what is not complete at its end is gone.

    Args:
        store: where to.
        config: how fast, and with how much memory.
        options: what is said about each object.
        on_progress: called on the calling thread about ten times a second with (bytes sent, connections).

    Attributes:
        connections: the most that were at work at once.

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
        self.connections = 0
        self._store = store
        self._config = config
        self._options = options or PutOptions()
        self._on_progress = on_progress
        self._budget = Budget(config)
        self._insistent = Insistent(self._make_writer, config, self._budget)
        self._how = algorithm(_CRC64NVME)
        self._outbox: Outbox[Outgoing] = Outbox()
        self._pace = Pace.of(config.connections, secure=store.secure)
        self._memory = config.memory_bytes()
        self._meter, self._gauge = Meter(), Meter()
        self._gauged = 0
        self._threads = Threads("write")
        self._surplus: collections.deque[bool] = collections.deque()
        self._senders: list[Sender] = []
        self._running: set[Future[None]] = set()
        self._looked = 0.0
        self._uploads: list[Upload] = []
        self._kept = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        try:
            self._stop()
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
        while not self._outbox.empty(_TICK):
            self._look()
        self._look(now=True)

    def complete(self) -> list[Receipt]:
        """Let every object appear, in the order in which they were begun.

        Raises:
            ValueError: of one of them not all was written.
            ObjectExistsError: there is something where nothing may be overwritten.
            IntegrityError: the store has other bytes than were sent.
            StoreError: the store refused. The objects before this one are there.
        """
        for upload in self._uploads:
            upload.check()
        self.wait()
        for upload in self._uploads:
            if upload.receipt is None:
                upload.receipt = self._complete(upload)
        self._look(now=True)
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
        """Have a part sent; wait until there is room for it."""
        if upload.multipart is None:
            upload.kept += cut.views
            return
        retry = Retry(upload.uri, cut.start, self._config.max_attempts, self._budget, "written")
        job = Outgoing(upload.multipart, cut, upload.arrivals, retry)
        part_size = max(cut.size, parts_of(upload.size, self._config.part_size))
        while not self._outbox.offer(job, cut.size, self._room(part_size), _TICK):
            self._look()
        self._start_more()
        self._look()

    def _room(self, part_size: int) -> int:
        """Return how many bytes may be held that are not sent."""
        return min(self._memory, self._pace.connections * _AHEAD * part_size)

    def _look(self, *, now: bool = False) -> None:
        """Look at the senders, if it is time to or `now`: raise what went wrong, and adapt their number.

        Raises:
            StoreError: a part could not be sent.
        """
        at = time.monotonic()
        if not now and at - self._looked < _TICK:
            return
        self._looked = at
        for future in [future for future in self._running if future.done()]:
            self._running.remove(future)
            future.result()
        wanted = self._pace.adapt(self._read())
        self._surplus.clear()
        self._surplus.extend([True] * (self._busy - wanted))
        self._start_more()
        self.connections = max(self.connections, self._busy)
        if self._on_progress is not None:
            alone = (upload.size for upload in self._uploads if upload.multipart is None and upload.receipt)
            self._on_progress(sum(sender.there for sender in self._senders) + sum(alone), self._busy)

    def _read(self) -> Reading:
        """Return what happened since the last look; a rate only where enough parts arrived to tell one.

        Bytes count as sent when the kernel has them. Over a short while that is the rate at which its buffers
        fill, which every new connection seems to raise.
        """
        now = replace(self._meter.read(self._senders, starved=True), rate=0.0)
        arrived = sum(len(upload.arrivals.parts) for upload in self._uploads)
        if arrived - self._gauged < _TELLING * self._pace.connections:
            return now
        self._gauged = arrived
        gauged = self._gauge.read(self._senders, starved=self._outbox.idle > 0)
        return replace(now, rate=gauged.rate, busy=gauged.busy, starved=gauged.starved)

    @property
    def _busy(self) -> int:
        """How many connections are at work, and not waiting for the caller."""
        return max(0, len(self._running) - self._outbox.idle)

    def _start_more(self) -> None:
        """Start senders, as many as there are parts for and the pace allows."""
        for _ in range(min(self._pace.connections - len(self._running), self._outbox.ready)):
            sender = Sender(
                self._make_writer,
                self._outbox,
                self._surplus,
                how=self._how,
                timeout=self._config.timeout,
                budget=self._budget,
            )
            self._senders.append(sender)
            self._running.add(self._threads.start(sender))

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

    def _stop(self) -> None:
        """End every sender."""
        self._outbox.close()
        for sender in self._senders:
            sender.stop()
        self._threads.join()

    def _discard(self, upload: Upload) -> Iterator[str]:
        """Abort what was not completed, and yield what there is to say of what is left of it."""
        if upload.receipt is not None:
            return
        if upload.multipart is not None:
            try:
                self._abort(upload, upload.multipart)
            except TorchwickError as error:
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
        again = any(sender.broke_off for sender in self._senders)

        def send(writer: Writer) -> None:
            writer.reset()  # a line of the senders' would do, but for the failure that may have ended it
            if writer.discard(multipart) and again:
                # A part that was broken off may have arrived after the abort; the second finds nothing.
                writer.discard(multipart)

        self._insistent.ask(send, upload.uri, upload.tally, done="aborted", most=_ABORTS)

    def _after_all(self, upload: Upload, appearing: Appearance) -> str | None:
        """Say what became of an object whose writing was broken off; None: it is not there."""
        try:
            there = self._insistent.ask(appearing.is_there, upload.uri, upload.tally, most=_ABORTS)
        except TorchwickError:
            return _MAY_BE_THERE
        return _IS_THERE if there else None


class Upload:
    """One object on its way; made by `Uploads.begin`.

    Attributes:
        uri: its address.
        size: its bytes.
        multipart: the upload in parts, or None where it goes in one request.
        kept: the bytes of an object that goes in one request.
        arrivals: what the store has.
        tally: what it has cost, besides its parts.
        appearing: what makes it appear, from when on that was tried.
        receipt: what it became, once it is there.
    """

    def __init__(
        self,
        uri: URI,
        size: int,
        *,
        overwrite: bool,
        part_size: int,
        send: Callable[[Upload, Cut], None],
    ) -> None:
        self.uri = uri
        self.size = size
        self.multipart: Multipart | None = None
        self.kept: list[memoryview] = []
        self.arrivals = Arrivals()
        self.tally = Tally()
        self.appearing: Appearance | None = None
        self.receipt: Receipt | None = None
        self._cutter = Cutter(part_size)
        self._send = send
        self._overwrite = overwrite
        self._ended = False

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes. They are not copied, and have to stay as they are until `Uploads.wait` returns.

        Waits while more of them are held than the memory limit, or than the connections need.

        Raises:
            ValueError: they are more than were announced.
            StoreError: a part could not be sent.
        """
        if self._ended or self._cutter.written + memoryview(data).nbytes > self.size:
            raise ValueError(f"{self.uri}: more is written than the {self.size} bytes that were announced")
        for cut in self._cutter.add(data):
            self._send(self, cut)

    def end(self) -> None:
        """Say that all is written.

        Raises:
            ValueError: it is less than was announced.
            StoreError: a part could not be sent.
        """
        if self._cutter.written != self.size:
            text = f"{self._cutter.written} bytes were written, and {self.size} announced"
            raise ValueError(f"{self.uri}: {text}")
        rest = self._cutter.rest()
        if rest is not None:
            self._send(self, rest)
        self._ended = True

    def check(self) -> None:
        """Refuse to go on where it was not ended.

        Raises:
            ValueError: it was not.
        """
        if not self._ended:
            raise ValueError(f"{self.uri}: not all of it was written")

    def appearance(self, how: Algorithm) -> Appearance:
        """Return what makes it appear, once all of its parts are there."""
        checksum, overwrite = self.checksum(how), self._overwrite
        multipart, parts = self.multipart, sorted(self.arrivals.parts, key=lambda part: part.number)
        if multipart is None:
            return Appearance(
                self.uri,
                lambda writer: writer.put(self.uri, self.kept, checksum, overwrite=overwrite),
                Expected(self.size, checksum, lambda: _md5(self.kept)),
            )
        return Appearance(
            self.uri,
            lambda writer: writer.complete(multipart, parts, self.size, checksum, overwrite=overwrite),
            Expected(self.size, checksum, lambda: etag_of_parts(parts)),
        )

    def checksum(self, how: Algorithm) -> int | None:
        """Return the CRC64NVME of the whole, or None where the store takes none."""
        if self.multipart is None:
            value = 0
            for view in self.kept:
                value = how.update(view, value)
            return value
        folded = fold(self.arrivals.pieces, [self.size], how) if self.multipart.checksummed else None
        return None if folded is None else folded[0]


def _check(uri: URI, size: int) -> None:
    """Refuse what cannot be uploaded."""
    if uri.scheme != "s3" or uri.version is not None or uri.is_directory:
        hint = "Name an object: s3://bucket/key."
        raise URIError("it cannot be written to", uri=uri, hint=hint)
    if size > LARGEST_OBJECT:
        hint = "Write it in several objects."
        raise StoreError(f"{size} bytes are more than S3 takes in one object", uri=uri, hint=hint)


def _begun(writer: Writer, uri: URI) -> Multipart:
    """Begin an upload, and leave word where nobody knows whether one was begun."""
    try:
        return writer.begin(uri)
    except (OSError, http.client.HTTPException) as error:
        if not isinstance(error, StoreError):
            _log.warning("%s: an upload may have been begun there, and its answer was lost", uri)
        raise


def _md5(views: Sequence[memoryview]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for view in views:
        digest.update(view)
    return digest.hexdigest()
