"""Everything that can go wrong between a store and a load, and what has to come of it.

`test_faults.py` brings each about at every stage of a load of every format, and writes the page "What a load
survives"; `soak.py` mixes them at random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from faults import (
    Answer,
    Cut,
    ErrorInSuccess,
    Fault,
    FlipByte,
    Gzip,
    IgnoreRange,
    Redirect,
    S3Error,
    ShiftRange,
    SlowDown,
    Stall,
    Trickle,
    Truncate,
    WrongETag,
    WrongTotal,
)
from torchwick.formats.torch_zip import TAIL
from trials import PART, Way

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults import Request
    from faulty import FaultyServer

Stage = Literal["start", "middle", "last", "many"]
STAGES: tuple[Stage, ...] = ("start", "middle", "last", "many")

RIGHT = "right tensors"
RETRIED = "right tensors, retried"
UNNOTICED = "wrong tensors, `verified` is `None`"
NOTHING = "-"

_MANY = 4  # requests, of as many connections


@dataclass(frozen=True)
class Trial:
    """An object on the fault server, about to be loaded.

    Attributes:
        server: where it is.
        path: the object's.
        way: what is in it.
        stage: when things go wrong.
    """

    server: FaultyServer
    path: str
    way: Way
    stage: Stage

    def at(self, request: Request) -> bool:
        """Whether a request is one of those that go wrong."""
        first, stop = request.range or (0, None)
        size = len(self.way.content)
        if self.stage == "start":
            return True
        if self.stage == "many":
            return first not in (0, size - TAIL)  # what is read of an archive before its parts are
        offset = size - 1 if self.stage == "last" else size // 2
        return first <= offset and (stop is None or offset < stop)

    @property
    def flipped(self) -> int:
        """A byte of a tensor."""
        return self.way.offset({"start": 1, "middle": 4, "last": 8, "many": 6}[self.stage]) + 100

    def goes_wrong(self, fault: Fault | Callable[[], object], times: int | None) -> None:
        """Have that many of the requests of this stage go wrong, None for all."""
        if times is not None and self.stage == "many":
            times = max(times, _MANY)
        nth = None if times is None else range(1, times + 1)
        self.server.on(fault, nth=nth, path=self.path, where=self.at)

    @property
    def other(self) -> bytes:
        """What the object is overwritten with: as many bytes, of which the first half is the same."""
        half = self.way.content[: len(self.way.content) // 2]
        return half.ljust(len(self.way.content), b"\0")

    def overwrite(self) -> None:
        self.server.put(self.path, self.other)

    def delete(self) -> None:
        self.server.delete(self.path)


@dataclass(frozen=True)
class Trouble:
    """One thing that goes wrong.

    Attributes:
        title: what it is, as the page says it.
        arrange: brings it about.
        outcome: what comes of it.
        at: what else comes of it at one stage, or with one format at one stage.
        timeout: of the transfer, seconds.
        attempts: of the transfer.
        checksum: which one S3 keeps of the object.
        alone: whether it takes a server, and so a store, that has seen no load before: connections and
            credentials are kept from load to load.
        mixes: whether chance may bring it about while others are about.
    """

    title: str
    arrange: Callable[[Trial], None]
    outcome: str
    at: dict[Stage | tuple[str, Stage], str] = field(default_factory=dict)
    timeout: float = 5.0
    attempts: int = 8
    checksum: str | None = None
    alone: bool = False
    mixes: bool = True

    def expected(self, way: Way, stage: Stage) -> str:
        """What comes of it, with this format at this stage."""
        return self.at.get((way.name, stage), self.at.get(stage, self.outcome))


def _faulty(fault: Fault, times: int | None = 1) -> Callable[[Trial], None]:
    return lambda trial: trial.goes_wrong(fault, times)


def _once(fault: Fault) -> Callable[[Trial], None]:
    """Have one request go wrong, at whichever stage."""
    return lambda trial: trial.server.on(fault, nth=1, path=trial.path, where=trial.at)


def _moved(trial: Trial) -> None:
    """Another place has the object."""
    trial.goes_wrong(Redirect(trial.server.put(f"{trial.path}.moved", trial.way.content)), None)


def _flipped(trial: Trial) -> None:
    trial.server.on(FlipByte(trial.flipped), path=trial.path)


def _once_begun(change: Callable[[Trial], Callable[[], None]]) -> Callable[[Trial], None]:
    """Change the object when a request comes that is not the load's first."""

    def arrange(trial: Trial) -> None:
        if trial.stage == "start":
            trial.server.on(change(trial), nth=2, path=trial.path)
        else:
            trial.server.on(change(trial), nth=1, path=trial.path, where=trial.at)

    return arrange


def _limited(trial: Trial) -> None:
    trial.server.most_at_once = 2
    trial.server.on(Trickle(PART // 4, 0.01), path=trial.path)  # so that there are several at once


def _handshakes(trial: Trial) -> None:
    first = trial.server.connections + (trial.stage == "many")
    trial.server.reset_handshakes = range(first, first + (2 if trial.stage == "many" else 1))


_SHORT = 0.3  # seconds; a timeout that passes

TROUBLES = (
    Trouble("the connection is reset after 10 bytes", _faulty(Cut(10)), RETRIED),
    Trouble("the connection is closed in good order after 10 bytes", _faulty(Truncate(10)), RETRIED),
    Trouble("the connection is reset before a byte", _faulty(Cut(0)), RETRIED),
    Trouble("silence after 10 bytes", _faulty(Stall(10)), RETRIED, timeout=_SHORT),
    Trouble("silence instead of an answer", _faulty(Stall(-1)), RETRIED, timeout=_SHORT),
    Trouble("one byte every 0.05 s", _faulty(Trickle(1, 0.05)), RETRIED, timeout=_SHORT),
    Trouble("500 InternalError, three times", _faulty(S3Error(500, "InternalError"), 3), RETRIED),
    Trouble("502 from a gateway, three times", _faulty(Answer(502, b"<html>Bad Gateway</html>"), 3), RETRIED),
    Trouble("503 ServiceUnavailable, three times", _faulty(S3Error(503, "ServiceUnavailable"), 3), RETRIED),
    Trouble("504 from a gateway, three times", _faulty(Answer(504, b""), 3), RETRIED),
    Trouble(
        "SlowDown with Retry-After, once",
        _faulty(S3Error(503, "SlowDown", headers={"Retry-After": "0.2"})),
        RETRIED,
    ),
    Trouble("SlowDown for ever", _faulty(SlowDown(), None), "TransferError", attempts=4),
    Trouble("400 RequestTimeout, once", _faulty(S3Error(400, "RequestTimeout")), RETRIED),
    Trouble(
        "the TLS handshake is reset", _handshakes, RETRIED, {"middle": NOTHING, "last": NOTHING}, alone=True
    ),
    Trouble(
        "only two requests at a time are answered",
        _limited,
        RETRIED,
        dict.fromkeys(STAGES[:3], NOTHING),
        alone=True,
    ),
    Trouble("overwritten meanwhile", _once_begun(lambda trial: trial.overwrite), "ObjectChangedError"),
    Trouble("deleted meanwhile", _once_begun(lambda trial: trial.delete), "ObjectChangedError"),
    Trouble("another range than was asked for", _faulty(ShiftRange(1), None), "StoreError"),
    Trouble(
        "another size of the object",
        _faulty(WrongTotal(10**6), None),
        "ObjectChangedError",
        {"start": "StoreError", ("legacy .pt", "start"): RIGHT, ("safetensors", "start"): "FormatError"},
    ),
    Trouble("another ETag", _faulty(WrongETag(), None), "ObjectChangedError"),
    Trouble(
        "200 and the whole object for a range", _faulty(IgnoreRange(), None), "StoreError", {"start": RIGHT}
    ),
    Trouble("a redirect to another place", _moved, "StoreError"),
    Trouble(
        "403 RequestTimeTooSkewed, once",
        _once(S3Error(403, "RequestTimeTooSkewed")),
        RIGHT,
        {"start": "CredentialsError"},
        alone=True,
    ),
    Trouble(
        "400 ExpiredToken, once",
        _once(S3Error(400, "ExpiredToken")),
        RIGHT,
        {"start": "CredentialsError"},
        alone=True,
    ),
    Trouble("403 AccessDenied for ever", _faulty(S3Error(403, "AccessDenied"), None), "AccessDeniedError"),
    Trouble(
        "200 and an error in place of the bytes",
        _faulty(ErrorInSuccess(), None),
        "ObjectChangedError",
        {"start": "FormatError"},
    ),
    Trouble("compressed on the way", _faulty(Gzip(), None), "StoreError"),
    Trouble(
        "a flipped byte, with a checksum that S3 keeps",
        _flipped,
        "IntegrityError",
        checksum="crc64nvme",
    ),
    Trouble(
        "a flipped byte, without",
        _flipped,
        UNNOTICED,
        mixes=False,
    ),
)
