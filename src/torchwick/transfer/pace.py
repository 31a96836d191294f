"""How many connections: pure decisions from what was measured so far."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Pace", "Reading", "cores"]

_MOST = 64
_WORTH_IT = 0.5  # of the speed-up that perfect scaling would bring
_AS_FAST = 0.9  # of the rate before: the difference is noise
_BUSY = 0.55  # of the cores: the rest is the share of the kernel and, on one machine, of the server
_PAUSE = 1.0  # seconds between two answers to throttling, and before each step back
_TOO_MANY = 0.25  # of the requests of such a time, refused: more than a store that merely fails at times


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Reading:
    """One look at a transfer.

    Attributes:
        rate: bytes per second, all connections together.
        busy: the share of this process's cores that it kept busy, 0 to 1.
        at: when, in seconds from any moment on.
        requests: how many were sent since the last look.
        throttled: how many were answered since then that the store is busy.
        starved: whether connections wait for something to read: the rate says nothing of their number.
    """

    rate: float
    busy: float
    at: float = 0.0
    requests: int = 0
    throttled: int = 0
    starved: bool = False


@dataclass
class _Throttling:
    """Tells a store that is asked too much from one that refuses now and then: by the share, over a second.

    A store that fails one request in twenty does so at any number of connections, and a load that halved
    them each time would end with one.
    """

    _since: float = -math.inf
    _requests: int = 0
    _refused: int = 0

    def is_on(self, now: Reading, connections: int) -> bool:
        """Return whether the store is asked too much; `connections` is the least that counts as asked."""
        if now.at - self._since >= _PAUSE:
            self._since, self._requests, self._refused = now.at, 0, 0
        self._requests += now.requests
        self._refused += now.throttled
        return self._refused > _TOO_MANY * max(self._requests, connections)


@dataclass
class Pace:
    """Decides on the number of connections, from one reading to the next.

    Where each connection is slow, as S3's are, the rate grows with their number: they are doubled for as
    long as it does. Where the processor is the limit, more of them only wait for it and for each other: they
    are cut down to what keeps it busy, and brought back if that made the load slower. Where the network or
    the server is the limit, the number stays.

    A store that throttles is obeyed first: the number is halved, and comes back one by one while the store
    is content, as far as it was (additive increase, multiplicative decrease, as TCP does). The answers to one
    burst come together, so that it is halved once for them.

    Attributes:
        connections: how many there are to be.
        fewest: how many are left where the processor is the limit.
        settled: whether the number is final.
    """

    connections: int
    fewest: int
    settled: bool = False
    _warm: bool = field(default=False, init=False)
    _before: tuple[int, float] | None = field(default=None, init=False)
    """The number before the last change, and the rate it had."""
    _wanted: int = field(default=0, init=False)
    """The number to come back to after throttling; 0 where there was none."""
    _throttling: _Throttling = field(default_factory=_Throttling, init=False)
    _halved: float = field(default=-math.inf, init=False)
    _content: float = field(default=0.0, init=False)
    """Since when the store has been content with the present number."""

    @classmethod
    def of(cls, wanted: int | Literal["auto"], *, secure: bool) -> Pace:
        """Return the pace to start with: see `TransferConfig.connections`.

        Measured on 2 cores over loopback: 8 connections were best over plain HTTP, and 2 over TLS, where each
        keeps a core busy decrypting. At 85 MB/s for each, as S3 gives, 32 were best.

        Example:
            >>> Pace.of(5, secure=True).connections
            5
        """
        if wanted != "auto":
            return cls(wanted, wanted, settled=True)
        if secure:
            return cls(min(16, 2 * cores()), fewest=min(16, cores()))
        return cls(8, fewest=min(8, 4 * cores()))

    def adapt(self, now: Reading) -> int:
        """Return how many connections there are to be from now on.

        Example:
            >>> pace = Pace(connections=8, fewest=4)
            >>> [pace.adapt(Reading(rate, busy=0.1)) for rate in (10.0, 100.0, 200.0, 210.0)]
            [8, 16, 32, 32]
            >>> pace = Pace(connections=8, fewest=4)
            >>> [pace.adapt(Reading(rate, busy=0.9)) for rate in (10.0, 100.0, 99.0)]
            [8, 4, 4]
            >>> pace = Pace.of(8, secure=False)
            >>> burst, calm = Reading(1.0, 0.1, at=0, requests=8, throttled=8), (0.5, 1.0, 2.0, 3.0)
            >>> pace.adapt(burst), *(pace.adapt(Reading(1.0, 0.1, at)) for at in calm)
            (4, 4, 5, 6, 7)
        """
        if self._throttling.is_on(now, self.connections):
            self._yield(now.at)
        elif self._wanted:
            self._come_back(now.at)
        elif self.settled or not self._warm or not now.rate or now.starved:
            # The first reading is of connections still opening, one of a stall says nothing of their number.
            self._warm = self._warm or now.rate > 0
        elif self._before is None:
            self._change(now, self.fewest if now.busy >= _BUSY else 2 * self.connections)
        elif self.connections < self._before[0]:
            self._settle(self.connections if now.rate > _AS_FAST * self._before[1] else self._before[0])
        elif now.busy < _BUSY and self._paid_off(now.rate):
            self._change(now, 2 * self.connections)
        else:
            self._settle(self.connections)
        return self.connections

    def _yield(self, at: float) -> None:
        if at - self._halved >= _PAUSE:
            self._wanted = max(self._wanted, self.connections)
            self.connections = max(1, self.connections // 2)
            self._halved = self._content = at

    def _come_back(self, at: float) -> None:
        if at - self._content >= _PAUSE:
            self.connections, self._content = self.connections + 1, at
        if self.connections >= self._wanted:
            self._wanted = 0
            self._settle(self.connections)

    def _change(self, now: Reading, connections: int) -> None:
        self._before = (self.connections, now.rate)
        self.connections = min(connections, _MOST)

    def _settle(self, connections: int) -> None:
        self.connections, self.settled = connections, True

    def _paid_off(self, rate: float) -> bool:
        fewer, slower = self._before or (self.connections, rate)
        return rate / slower - 1 >= _WORTH_IT * (self.connections / fewer - 1)
