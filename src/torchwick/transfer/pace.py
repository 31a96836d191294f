"""How many connections: pure decisions from what was measured so far."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

__all__ = ["Pace", "first_connections"]

_MOST = 64
_WORTH_IT = 0.5  # of the speed-up that perfect scaling would bring


def first_connections(wanted: int | Literal["auto"], *, secure: bool) -> int:
    """Return how many connections to start with: see `TransferConfig.connections`.

    Measured on 2 cores: 8 to 16 were best over plain HTTP, 4 to 6 over TLS, where each connection keeps a
    core busy decrypting.

    Example:
        >>> first_connections(5, secure=True)
        5
    """
    if wanted != "auto":
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, 3 * cores) if secure else 16


@dataclass
class Pace:
    """Adds connections for as long as they make the load faster.

    Where each connection is slow, as S3's are, the rate grows with their number; where the network, the
    server or the processor is the limit, it does not, and the number stays.
    """

    connections: int
    growing: bool = True
    _warm: bool = False
    _before: tuple[int, float] | None = None

    def more(self, rate: float) -> int:
        """Return how many connections to add, given the rate of all of them in bytes per second.

        Example:
            >>> pace = Pace(connections=8)
            >>> [pace.more(rate) for rate in (10.0, 100.0, 200.0, 210.0)]  # the first is still starting up
            [0, 8, 16, 0]
        """
        if not self._warm or not self.growing:
            self._warm = rate > 0
            return 0
        if self._before is not None:
            fewer, slower = self._before
            self.growing = rate / slower - 1 >= _WORTH_IT * (self.connections / fewer - 1)
        added = min(self.connections, _MOST - self.connections) if self.growing and rate > 0 else 0
        if added:
            self._before = (self.connections, rate)
            self.connections += added
        return added
