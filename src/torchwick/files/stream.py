"""Reads an object in order, ahead of its reader: a transfer on threads of its own, while it is used."""

from __future__ import annotations

import sys
import threading
import time

from torchwick.config import TransferConfig
from torchwick.errors import StoreError, TransferError
from torchwick.files.window import Segment, Window
from torchwick.store import ObjectInfo, Store
from torchwick.transfer import Part, Transfer, populate

__all__ = ["Stream"]

_LINGER = 2.0  # seconds without anything to read, after which the threads end; the next read starts others
_LOOK = 1.0  # seconds between looks at the main thread, as in `torchwick.transfer.ceiling`


def _is_within(error: StoreError, start: int, stop: int) -> bool:
    """Whether an error says of itself that it is about bytes of a range."""
    failed = error.range if isinstance(error, TransferError) else None
    return failed is not None and start <= failed[0] < stop


class _Parts:
    """A transfer's supply: the parts of a window, as they come to be wanted.

    Args:
        window: makes them.
    """

    def __init__(self, window: Window) -> None:
        self._window = window
        self.closed = False
        self.idle = 0
        """How many threads wait in `take`."""

    @property
    def ready(self) -> int:
        """Without a bound where a part is wanted, unless a thread waits already."""
        return sys.maxsize if self._window.room and not self.closed and not self.idle else 0

    def take(self) -> Part | None:
        """Return the next part; None: the supply was closed, or nobody has wanted one for a while."""
        with self._window.changed:
            self.idle += 1
            try:
                self._wait()
                return None if self.closed else self._window.next_part()
            finally:
                self.idle -= 1

    def _wait(self) -> None:
        since = time.monotonic()
        while not self.closed and not self._window.room:
            over = time.monotonic() - since > _LINGER or not threading.main_thread().is_alive()
            if over and self._window.quiet:
                self._close()
            else:
                self._window.changed.wait(_LOOK)

    def close(self) -> None:
        """Make every `take` return None."""
        with self._window.changed:
            self._close()

    def _close(self) -> None:
        self.closed = True
        self._window.changed.notify_all()


class _Run:
    """One transfer on a thread of its own.

    Args:
        store: where the object is.
        window: what is read of it.
        config: how.
    """

    def __init__(self, store: Store, window: Window, config: TransferConfig) -> None:
        self._window = window
        self._parts = _Parts(window)
        self._transfer = Transfer(store, self._parts, config)
        self._thread = threading.Thread(target=self._run, name="torchwick-ahead")
        self.error: BaseException | None = None
        """What it failed with."""
        self.over = False
        """Whether it has ended, and every thread of it."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._transfer.run()
        except BaseException as error:  # noqa: BLE001 - it is raised where the bytes are asked for
            self.error = error
        finally:
            with self._window.changed:
                self._window.lose()
                self.over = True
                self._window.changed.notify_all()

    def cancel(self) -> None:
        """Have it end soon."""
        self._transfer.cancel()

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread.ident is not None:
            self._thread.join()


class Stream:
    """Reads ahead of one reader, and gives it what was read; one thread at a time.

    Args:
        store: where the object is.
        info: the object.
        size: its bytes.
        config: how to read.
        limit: the most bytes to hold.
    """

    def __init__(self, store: Store, info: ObjectInfo, size: int, config: TransferConfig, limit: int) -> None:
        self._store = store
        self._config = config
        self._window = Window(info, size, config.part_size, limit)
        self._run: _Run | None = None

    def holds(self, at: int) -> bool:
        """Tell whether a byte is there, or on its way."""
        return self._window.holds(at)

    def read(self, at: int, into: memoryview, *, ahead: int) -> int:
        """Fill `into` with the bytes from `at` on, and return how many that were: all of them.

        Args:
            at: the first byte.
            into: ends within the object.
            ahead: bytes beyond it that are worth reading now.

        Raises:
            StoreError: they cannot be read.
        """
        try:
            return self._read(at, into, ahead)
        except StoreError as error:
            stop = at + len(into)
            if self._window.furthest <= stop or _is_within(error, at, stop):
                raise
        # What failed may be bytes that this read does not need.
        return self._read(at, into, 0)

    def _read(self, at: int, into: memoryview, ahead: int) -> int:
        self._window.want(at, into, ahead)
        try:
            self._go_on()
            filled = 0
            while filled < len(into):
                filled += self._take(at + filled, into[filled:])
        except BaseException:
            self.close()  # before the caller has the memory back
            raise
        self._window.wait_no_more()
        return filled

    def _go_on(self) -> None:
        """See to it that the parts that are wanted are read."""
        with self._window.changed:
            if (self._run is None or self._run.over) and self._window.room:
                self._run = _Run(self._store, self._window, self._config)
                self._run.start()

    def _take(self, at: int, into: memoryview) -> int:
        """Wait for the segment at `at`, and take what `into` has room for."""
        segment = self._next()
        count = min(len(into), segment.stop - at)
        if segment.buffer is not None:
            populate(into[:count])
            into[:count] = segment.buffer[at - segment.start :][:count]
        self._window.consume(segment, at + count)
        return count

    def _next(self) -> Segment:
        """Wait for the segment that comes next.

        Raises:
            StoreError: it will not come. What failed while nobody waited is not raised, but tried again.
        """
        with self._window.changed:
            while (segment := self._window.first) is None:
                run = self._run
                if run is None or not self._window.wanted:
                    raise ValueError("the file was closed amid a read")
                if run.over and run.error is not None:
                    raise run.error
                self._go_on()
                self._window.changed.wait()
        return segment

    def cancel(self) -> None:
        """Stop, without waiting for it; from any thread."""
        if self._run is not None:
            self._run.cancel()

    def close(self) -> None:
        """Stop, wait until that is done, and forget what was read."""
        if self._run is not None:
            self._run.cancel()
            self._run.join()
            self._run = None
        self._window.clear()
