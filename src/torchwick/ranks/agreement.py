"""How the ranks of one load agree: that all are there, on what is read, and that all have it, or none.

All of it goes through the group's key-value store, and every wait looks for the failure of another rank. So
no rank is left in a collective that another one will never enter: before the first all have said that they
are ready, and after a failure all go on to where the furthest of them is, and stop there.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Generic, NoReturn, Protocol, Self, TypeVar

from torchwick.errors import (
    FormatError,
    GroupError,
    IntegrityError,
    ObjectChangedError,
    ObjectNotFoundError,
    TensorNotFoundError,
    TorchwickError,
)
from torchwick.ranks.members import Work
from torchwick.ranks.pulse import Failure, Pulse

__all__ = ["Agreement", "Party"]

_OF_ALL: dict[str, type[TorchwickError]] = {
    kind.__name__: kind
    for kind in (FormatError, IntegrityError, ObjectChangedError, ObjectNotFoundError, TensorNotFoundError)
}
"""Errors that are about the checkpoint, whoever meets them: every rank raises them as they are."""

_OWN = (*_OF_ALL, "StateDictError")
"""Errors that the rank which meets them raises as they are, and not as a `GroupError`."""

_SHORTEST, _LONGEST = 0.0002, 0.02  # seconds between two looks
_PARTING = 2.0
"""Seconds: eight times what it takes a rank to hear of a failure."""
_BEATS_TO_BE_SURE = 8  # in which a rank that is alive shows it
_NEW_GROUP = "Make a new process group before the next load: collectives of this one may never end."


class Party(Protocol):
    """Ranks, as one of them sees them."""

    @property
    def rank(self) -> int:
        """This one's number among them."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def store(self) -> Any:
        """The keys of this load, in the key-value store of torch.distributed."""
        ...

    def abandon(self) -> None:
        """Keep what collectives that may never end still use."""
        ...


_Party = TypeVar("_Party", bound=Party)


class Agreement(Generic[_Party]):
    """One load's: a context manager, which tells the others of whatever ends it.

    Args:
        members: the ranks: a group's, or a mesh's.
        timeout: seconds without a sign of life, or without an answer, after which the load fails.
    """

    def __init__(self, members: _Party, timeout: float) -> None:
        self.members = members
        self._store = members.store
        self._timeout = timeout
        self._are_there = False
        self._pulse = Pulse(self._store, members.rank, members.size, timeout)
        self.patient = self._pulse.patient
        """For what ends by itself, such as a request: the rank counts as alive meanwhile."""
        self.settle: Callable[[int], None] = lambda _: None
        """Enters the collectives up to a number, whatever they bring, and waits for all under way."""
        self.entered = 0
        """How many collectives this rank has entered."""

    def __enter__(self) -> Self:
        self._pulse.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            raised = None if error is None else self._end(error)
        finally:
            self._pulse.stop()
        if raised is not None and raised is not error:
            raise raised from (None if isinstance(error, _ToldError) else error)

    def check(self) -> None:
        """Show that this rank goes on.

        Raises:
            GroupError: another rank has failed, or what is about the checkpoint in its own class.
        """
        self._pulse.move()
        if self._pulse.failure is None and self._pulse.silence > max(self._timeout, 1):
            message = f"the process group's key-value store has not answered for {self._timeout:.0f} s"
            self._pulse.failure = Failure(None, "", message, alive=False)
        if self._pulse.failure is not None:
            raise _ToldError(self._pulse.failure)

    def arrive(self) -> None:
        """Wait until every rank is there.

        Raises:
            GroupError: one did not come in time.
        """
        self._barrier("arrived", self._late)
        self._are_there = True
        self._pulse.watch()

    def ready(self) -> None:
        """Wait until every rank is ready for the first collective."""
        self._barrier("ready", None)

    def tell(self, key: str, value: str) -> None:
        """Let the others know something."""
        self._store.set(key, value)

    def hear(self, key: str) -> str:
        """Wait until another rank tells, and return what."""
        self._wait(lambda: self._store.check([key]))
        text: str = self._store.get(key).decode()
        return text

    def part(self) -> None:
        """Wait a little until all know how it ended: with the first rank's process the store may end."""
        self._store.add("parted", 1)
        until = time.monotonic() + _PARTING
        while self._store.add("parted", 0) < self.members.size and time.monotonic() < until:
            time.sleep(_SHORTEST)

    def finish(self, work: Work) -> None:
        """Wait for a collective.

        Raises:
            GroupError: a rank has failed or is gone.
        """
        self._wait(work.is_completed)
        try:
            work.wait()
        except RuntimeError as error:
            self._lost(error)

    def _wait(self, is_done: Callable[[], bool], late: Callable[[float], None] | None = None) -> None:
        began = time.monotonic()
        pause = _SHORTEST
        while not is_done():
            self.check()
            if late is not None:
                late(began)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST)
        self._pulse.move()

    def _barrier(self, name: str, late: Callable[[float], None] | None) -> None:
        self._store.add(name, 1)
        self._wait(lambda: self._store.add(name, 0) >= self.members.size, late)

    def _late(self, began: float) -> None:
        if time.monotonic() - began < self._timeout:
            return
        absent = [rank for rank in range(self.members.size) if self._pulse.beats_of(rank) is None]
        rank = absent[0] if absent else None
        message = f"it did not come within {self._timeout:g} s"
        raise _ToldError(self._pulse.fail(Failure(rank, "", message, alive=False)))

    def _lost(self, error: RuntimeError) -> NoReturn:
        """Find out who it was whose connection broke: whoever shows nothing any more."""
        before, began = self._beats(), time.monotonic()
        gone, waited = list[int](), 0.0
        while waited < _BEATS_TO_BE_SURE * self._pulse.every or (len(gone) > 1 and waited < self._timeout):
            self.check()
            time.sleep(self._pulse.every / 2)
            gone = [rank for rank, beats in self._beats().items() if beats == before[rank]]
            waited = time.monotonic() - began
        reason = str(error).partition("\n")[0].rpartition("] ")[2] or type(error).__name__
        if gone:
            failure = Failure(gone[0], "", f"it is gone, its connections are closed ({reason})", alive=False)
        else:
            message = f"a connection to another rank broke ({reason})"
            failure = Failure(self.members.rank, "", message, alive=False)
        raise _ToldError(self._pulse.fail(failure)) from None

    def _beats(self) -> dict[int, str | None]:
        others = (rank for rank in range(self.members.size) if rank != self.members.rank)
        return {rank: self._pulse.beats_of(rank) for rank in others}

    def _end(self, error: BaseException) -> BaseException:
        """Tell the others, leave the collectives in order, and return what is to be raised."""
        told = error.failure if isinstance(error, _ToldError) else self._say(error)
        settled = not self._are_there  # before that, no one has entered anything
        if told.alive:
            with contextlib.suppress(Exception):  # of a store that is gone: the error to tell is another
                settled = self._settle() or settled
                self.part()
        if not settled:
            self.members.abandon()
        own = (TorchwickError,) if type(error).__name__ not in _OWN else ()
        if not isinstance(error, (_ToldError, *own)):
            if not settled:
                error.add_note(_NEW_GROUP)
            return error
        raised = self._error_of(told, settled=settled)
        for note in getattr(error, "__notes__", ()):  # such as that a module is partly filled
            raised.add_remark(note)
        return raised

    def _say(self, error: BaseException) -> Failure:
        """Tell of this rank's own error; of one that is not torchwick's no more than its class."""
        kind = type(error).__name__
        if isinstance(error, TorchwickError):
            failure = Failure(self.members.rank, kind, error.message, error.uri, error.hint)
        else:
            failure = Failure(self.members.rank, kind, f"{kind} was raised there")
        try:
            return self._pulse.fail(failure)
        except Exception:  # noqa: BLE001 - the store is gone as well: its own error is what there is to tell
            return Failure(failure.rank, kind, failure.message, failure.uri, failure.hint, alive=False)

    def _settle(self) -> bool:
        """Go on to where the furthest rank is; return whether all did, so that nothing is under way."""
        self._store.set(f"stopped/{self.members.rank}", str(self.entered))
        if not self._are_there:
            return True
        keys = [f"stopped/{rank}" for rank in range(self.members.size)]
        until = time.monotonic() + self._timeout
        while not self._store.check(keys):
            if time.monotonic() > until:
                return False
            time.sleep(_LONGEST)
        try:
            self.settle(max(int(self._store.get(key)) for key in keys))
        except RuntimeError:  # a connection broke as well
            return False
        return True

    def _error_of(self, told: Failure, *, settled: bool) -> TorchwickError:
        who = f"rank {told.rank} of {self.members.size}"
        if told.kind in _OF_ALL:
            error: TorchwickError = _OF_ALL[told.kind](told.message, uri=told.uri, hint=told.hint)
            error.add_remark(f"It was {who} that found this")
            if not settled:
                error.add_remark(_NEW_GROUP)
            return error
        cause = told.message if not told.kind else f"{told.kind}: {told.message}"
        if told.kind and told.uri:
            cause = f"{told.kind}: {told.uri}: {told.message}"
        said = f"{who} failed: {cause}" if told.rank is not None else cause
        hint = told.hint or "Look at the log of that rank."
        if not settled:
            hint = f"{hint.rstrip('.')}. {_NEW_GROUP}"
        return GroupError(said, rank=told.rank, cause=cause, hint=hint)


class _ToldError(Exception):
    """Another rank has failed: on its way to where all of it is put into words."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure
