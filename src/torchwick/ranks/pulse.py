"""The thread that shows the others that this rank lives, and hears from them when one has failed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Failure", "Pulse"]

_FAILED = "failed"
_OFTEN = 0.25  # seconds between beats


@dataclass(frozen=True)
class Failure:
    """What ended a load.

    Attributes:
        rank: whose it is; None where it is no single rank's.
        kind: the class of its error, or empty where the rank is gone.
        message: its text, without secrets.
        uri: the object it is about, or None.
        hint: what to do, or None.
        alive: whether that rank still does its part in ending what is under way.
    """

    rank: int | None
    kind: str
    message: str
    uri: str | None = None
    hint: str | None = None
    alive: bool = True


class Pulse:
    """Beats for as long as the calling thread shows that it goes on.

    Each rank watches the next one, so that the store is asked the same few things by each, however many there
    are.

    Args:
        store: the keys of this load.
        rank: this one.
        size: how many there are.
        timeout: seconds without a beat after which a rank counts as dead.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self.failure: Failure | None = None
        self._store = store
        self._rank = rank
        self._next = (rank + 1) % size
        self._timeout = timeout
        self.every = min(_OFTEN, timeout / 8)
        self._moved = 0
        self._patient = 0
        self._ticks = 0
        self._last = time.monotonic()
        self._watching = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="torchwick-pulse", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End it. A store that does not answer is not waited for."""
        self._ended.set()
        self._thread.join(self._timeout)

    def move(self) -> None:
        """Show that the calling thread goes on."""
        self._moved += 1

    @contextmanager
    def patient(self) -> Iterator[None]:
        """Beat for a while without being moved: what goes on ends by itself, however long it takes."""
        self._patient += 1
        try:
            yield
        finally:
            self._patient -= 1

    def watch(self) -> None:
        """Begin to watch the next rank: it is there."""
        self._watching = True

    @property
    def silence(self) -> float:
        """Seconds since the store last answered this thread."""
        return time.monotonic() - self._last

    def fail(self, failure: Failure) -> Failure:
        """Tell all of a failure, unless one was told before; return the one that was told."""
        told = self._store.compare_set(_FAILED, "", json.dumps(asdict(failure)))
        self.failure = Failure(**json.loads(told))
        return self.failure

    def beats_of(self, rank: int) -> str | None:
        """Return what a rank has shown of itself, or None."""
        key = f"beat/{rank}"
        return self._store.get(key).decode() if self._store.check([key]) else None

    def _run(self) -> None:
        seen, since = None, time.monotonic()
        try:
            while not self._ended.is_set():
                self._beat()
                moved = self._moves_of_next() if self._watching else None
                now = time.monotonic()
                if moved != seen or moved is None:
                    seen, since = moved, now
                elif now - since > self._timeout:
                    self.fail(silent(self._next, now - since))
                    return
                self._ended.wait(self.every)
        except Exception as error:  # noqa: BLE001 - whatever a kind of store raises when it is gone
            if self.failure is None:
                self.failure = _unreachable(error)

    def _beat(self) -> None:
        self._ticks += 1
        moved = self._moved + (self._ticks if self._patient else 0)
        self._store.set(f"beat/{self._rank}", f"{moved} {self._ticks}")
        if self.failure is None and self._store.check([_FAILED]):
            self.failure = Failure(**json.loads(self._store.get(_FAILED)))
        self._last = time.monotonic()

    def _moves_of_next(self) -> str | None:
        beats = self.beats_of(self._next)
        return None if beats is None else beats.partition(" ")[0]


def silent(rank: int, seconds: float) -> Failure:
    """Return the failure of a rank that shows no sign of life."""
    return Failure(rank, "", f"it has shown no sign of life for {seconds:.0f} s", alive=False)


def _unreachable(error: Exception) -> Failure:
    message = (
        f"the process group's key-value store does not answer ({type(error).__name__}): whoever keeps it, "
        "usually the first rank, is gone"
    )
    return Failure(None, "", message, alive=False)
