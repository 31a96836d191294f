"""Saves that go on while a program does: how many there may be, what waits for them, what becomes of errors.

At most two at once, so that two copies of a state are held at the most; never two of one object. What is to
be deleted is deleted when all that were being saved before it are there: until then it may be the only
checkpoint. An error is raised by the next call that can raise it, and then what was to be deleted stays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any

__all__ = ["UnderWay"]

_MOST = 2  # the best and the last checkpoint are saved one right after the other


class UnderWay:
    """Saves that are under way, and deletions that wait for them.

    Args:
        most: saves at once.

    Example:
        >>> saves, first = UnderWay(), Future()
        >>> saves.begin("new.ckpt", lambda: first)
        >>> saves.delete("old.ckpt", lambda: print("deleted"))
        >>> first.set_result(None)
        >>> saves.finish()
        deleted
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._saves: dict[Hashable, Future[Any]] = {}
        self._deletions: dict[Hashable, _Deletion] = {}

    def begin(self, name: Hashable, start: Callable[[], Future[Any]]) -> None:
        """Begin a save, once there is room for it and no other of that name is under way.

        Args:
            name: what is saved.
            start: begins it.

        Raises:
            Exception: another one failed, or a deletion; this one was not begun.
        """
        self._settle()
        while name in self._saves or len(self._saves) >= self._most:
            self._end(name if name in self._saves else next(iter(self._saves)))
        self._deletions.pop(name, None)
        self._saves[name] = start()

    def delete(self, name: Hashable, delete: Callable[[], object]) -> None:
        """Delete what was saved, once all that is being saved now is there.

        Args:
            name: what is deleted.
            delete: deletes it.

        Raises:
            Exception: a save failed, or a deletion.
        """
        self._deletions[name] = _Deletion(delete, set(self._saves.values()))
        self._settle()

    def finish(self) -> None:
        """Wait for all of it.

        Raises:
            Exception: a save failed, or a deletion. All others have ended, too.
        """
        failures: list[Exception] = []
        for name in list(self._saves):
            try:
                self._end(name)
            except Exception as error:  # noqa: BLE001 - raised when the others have ended
                failures.append(error)
        try:
            self._settle()
        except Exception as error:  # noqa: BLE001 - likewise
            failures.append(error)
        if failures:
            for other in failures[1:]:
                failures[0].add_note(f"Another one failed as well: {other}")
            raise failures[0]

    def _settle(self) -> None:
        """Hear how those that have ended did, and delete what waits for nothing any more."""
        for name in [name for name, save in self._saves.items() if save.done()]:
            self._end(name)
        for name in [name for name, deletion in self._deletions.items() if not deletion.after]:
            self._deletions.pop(name).delete()

    def _end(self, name: Hashable) -> None:
        """Wait for a save."""
        save = self._saves[name]
        try:
            save.result()
        except BaseException:
            self._deletions = {
                name: deletion for name, deletion in self._deletions.items() if save not in deletion.after
            }
            raise
        finally:
            del self._saves[name]
            for deletion in self._deletions.values():
                deletion.after.discard(save)


class _Deletion:
    """What is to be deleted.

    Args:
        delete: deletes it.
        after: saves that have to succeed before.
    """

    def __init__(self, delete: Callable[[], object], after: set[Future[Any]]) -> None:
        self.delete = delete
        self.after = after
