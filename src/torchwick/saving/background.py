"""`save_async`: the caller goes on as soon as its tensors are copied; a thread writes what was copied.

A save that fails is never lost: it is logged, its future raises, and if nobody asks that, it is told when the
program ends. The end of the program waits for saves that are under way.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from torchwick.checkpoint.progress import watched
from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.errors import TorchwickError
from torchwick.report import Progress, ProgressCallback, SaveReport

if TYPE_CHECKING:
    import torch

    from torchwick.saving.job import Job

__all__ = ["save_async"]

_log = logging.getLogger("torchwick")
_MOST_SENDING = 1 << 30  # bytes that are being sent, beside those that wait; more connections need no more


def save_async(
    obj: object,
    uri: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = True,
    max_shard_size: int | str | None = None,
    options: PutOptions | None = None,
    delete_replaced: bool = False,
    progress: bool | ProgressCallback = False,
    on_report: Callable[[SaveReport], object] | None = None,
    s3: S3Config | None = None,
    transfer: TransferConfig | None = None,
) -> Future[SaveReport]:
    """Save an object, and return as soon as its tensors may be changed.

    What is saved are the values at the time of the call. They are copied within
    ``TransferConfig.memory_limit``; a model larger than that keeps the caller until the rest of it fits.

    Args:
        obj: what is saved, as by `save`.
        uri: where to.
        metadata: texts for the header of safetensors.
        overwrite: replace what is there.
        max_shard_size: bytes of tensors in one file of a directory.
        options: what S3 is told about each object.
        delete_replaced: delete the other files of the model that is replaced.
        progress: True for a bar, or a function that is called on the thread that writes.
        on_report: called with the report, on that thread.
        s3: who asks and which S3.
        transfer: how fast and with how much memory.

    Returns:
        What is to come: `result()` waits for the report, or raises what went wrong. Ctrl-C while it waits
        breaks the save off. An error that nobody asks for is logged, and told when the program ends; the
        end of the program waits for the save.

    Raises:
        TorchwickError: it cannot be saved, as far as can be told beforehand; see `save`.
        TypeError: it is no mapping of names to tensors, and safetensors holds nothing else.

    Example:
        >>> import tempfile, torch
        >>> weight = torch.ones(3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     future = save_async({"w": weight}, f"{folder}/new.safetensors")
        ...     _ = weight.zero_()
        ...     future.result().tensors
        1
    """
    from torchwick.saving.draft import draft_object
    from torchwick.saving.job import Wishes, begin

    wishes = Wishes(
        metadata=metadata,
        overwrite=overwrite,
        max_shard_size=max_shard_size,
        options=options,
        delete_replaced=delete_replaced,
        s3=s3,
        transfer=transfer,
    )
    job = begin(partial(draft_object, obj), uri, wishes)
    running = _Running(job, progress, on_report)
    running.start(job.draft.tensors)
    return running.future


class _SaveFuture(Future[SaveReport]):
    """A future that knows whether anybody asked how it ended, and that Ctrl-C breaks off."""

    def __init__(self, abort: Callable[[], None]) -> None:
        super().__init__()
        self.asked = False
        self._abort = abort

    def result(self, timeout: float | None = None) -> SaveReport:
        """Wait for the report; see `concurrent.futures.Future.result`."""
        try:
            report = super().result(timeout)
        except KeyboardInterrupt:
            self._abort()
            raise
        finally:
            self.asked = self.asked or self.done()
        return report

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the error, if any; see `concurrent.futures.Future.exception`."""
        try:
            error = super().exception(timeout)
        except KeyboardInterrupt:
            self._abort()
            raise
        finally:
            self.asked = self.asked or self.done()
        return error


class _Running:
    """A save on a thread of its own.

    Args:
        job: what is saved.
        progress: True for a bar, or a function.
        on_report: called with the report.
    """

    def __init__(
        self,
        job: Job,
        progress: bool | ProgressCallback,
        on_report: Callable[[SaveReport], object] | None,
    ) -> None:
        from torchwick.saving.snapshots import Snapshots

        limit = job.to.transfer.memory_bytes()
        sending = min(limit // 4, _MOST_SENDING)
        transfer = replace(job.to.transfer, memory_limit=max(1, sending))
        self.future = _SaveFuture(self.abort)
        self._uri = str(job.to.uri)
        self._progress = progress
        self._on_report = on_report
        self._snapshots = Snapshots(limit - sending)
        self._aborted = threading.Event()
        # The thread has no hold of the tensors, which their owner may want to be rid of.
        job = replace(job, to=replace(job.to, transfer=transfer), draft=replace(job.draft, tensors=()))
        self._thread = threading.Thread(target=self._run, args=(job,), name="torchwick-save", daemon=False)

    def start(self, tensors: Sequence[torch.Tensor]) -> None:
        """Begin, and return when the tensors may be changed."""
        from torchwick.transfer import ClosedError

        _unfinished.add(self)
        self.future.set_running_or_notify_cancel()
        self._thread.start()
        try:
            self._snapshots.fill(tensors)
        except ClosedError:
            return  # it has failed already, which the future tells
        except BaseException:  # Ctrl-C, or no memory for a copy
            self.abort()
            self.future.asked = True
            raise

    def abort(self) -> None:
        """Break it off, and return when nothing is left of it."""
        self._aborted.set()
        self._snapshots.abort()
        self._thread.join()

    def _run(self, job: Job) -> None:
        contents = self._snapshots.contents(sum(file.tensors for file in job.draft.files))
        try:
            with watched(self._progress) as on_progress:
                report = job.run(contents, self._heeding(on_progress))
            if self._on_report is not None:
                self._on_report(report)
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            traceback.clear_frames(error.__traceback__)  # they hold what was copied
            if not self._aborted.is_set():
                _log.error("a save failed: %s", self._described(error))
            self.future.set_exception(error)
        else:
            self.future.set_result(report)
            _unfinished.discard(self)
        finally:
            self._snapshots.close()

    def _heeding(self, on_progress: ProgressCallback | None) -> ProgressCallback:
        """Return a function that breaks the save off when it is to be, and else tells of its progress."""

        def heed(progress: Progress) -> None:
            if self._aborted.is_set():
                raise CancelledError
            if on_progress is not None:
                on_progress(progress)

        return heed

    def settle(self) -> None:
        """Come to an end with the program; what is still under way, Ctrl-C ended the wait for."""
        if self._thread.is_alive():
            self.abort()
        error = Future.exception(self.future)
        if error is not None and not self.future.asked:
            sys.stderr.write(f"torchwick: a save failed, and nobody asked: {self._described(error)}\n")

    def _described(self, error: BaseException) -> str:
        if isinstance(error, TorchwickError) and error.uri is not None:
            return str(error)
        return f"{self._uri}: {type(error).__name__}: {error}"


_unfinished: set[_Running] = set()
"""Saves that are under way, or have failed."""


if hasattr(os, "register_at_fork"):  # the parent's saves are the parent's
    os.register_at_fork(after_in_child=_unfinished.clear)


@atexit.register
def _settle() -> None:
    for running in list(_unfinished):
        running.settle()
