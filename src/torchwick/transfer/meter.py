"""Turns the running totals of a transfer's threads into readings, which the pace is made of."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from torchwick.transfer.pace import Reading, cores
from torchwick.transfer.tally import Tally

__all__ = ["Counted", "Meter"]


class Counted(Protocol):
    """A thread of a transfer, which counts what it does.

    Attributes:
        tally: what it has cost so far.
        there: bytes that it brought for good.
        throttled: how many answers said that the store is busy.
    """

    tally: Tally
    there: int
    throttled: int


class Meter:
    """Takes readings, one after the other."""

    def __init__(self) -> None:
        self._began = self._wall = time.monotonic()
        self._processor = time.process_time()
        self._there = self._requests = self._throttled = 0

    def read(self, threads: Iterable[Counted], *, starved: bool) -> Reading:
        """Return what happened since the last reading.

        Args:
            threads: all of the transfer.
            starved: whether some of them wait for something to do.
        """
        wall, processor = time.monotonic(), time.process_time()
        there = requests = throttled = 0
        for each in threads:
            there += each.there
            requests += each.tally.requests
            throttled += each.throttled
        seconds = max(wall - self._wall, 1e-6)  # the clock may stand still between two looks
        reading = Reading(
            rate=(there - self._there) / seconds,
            busy=(processor - self._processor) / seconds / cores(),
            at=wall - self._began,
            requests=requests - self._requests,
            throttled=throttled - self._throttled,
            starved=starved,
        )
        self._wall, self._processor = wall, processor
        self._there, self._requests, self._throttled = there, requests, throttled
        return reading
