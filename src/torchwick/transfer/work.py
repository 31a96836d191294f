"""What is left to read: parts that were put back, and before all others; then those of the supply."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable

from torchwick.config import TransferConfig
from torchwick.transfer.budget import Budget
from torchwick.transfer.job import Job
from torchwick.transfer.plan import Part
from torchwick.transfer.supply import Supply

__all__ = ["Work"]

_BLOCKED = 0.1  # seconds: a supply that takes longer waits for memory, and the store was asked for nothing


class Work:
    """Makes parts into jobs, for the workers of one transfer.

    Args:
        supply: where the parts come from.
        config: how they are read.
        budget: what the load may spend on failures.
        taken: told of each part of the supply, on the thread that takes it.
    """

    def __init__(
        self, supply: Supply, config: TransferConfig, budget: Budget, taken: Callable[[Part], None]
    ) -> None:
        self._supply = supply
        self._config = config
        self._budget = budget
        self._taken = taken
        self._back: collections.deque[Job] = collections.deque()

    @property
    def ready(self) -> int:
        """At most how many more workers would find something to read now."""
        return len(self._back) + self._supply.ready

    def take(self) -> Job | None:
        """Return what is read next, as soon as there is something; None: all is taken."""
        try:
            return self._back.popleft()
        except IndexError:
            pass
        asked = time.monotonic()
        part = self._supply.take()
        if part is None:
            return None
        if time.monotonic() - asked > _BLOCKED:
            self._budget.begin()
        self._taken(part)
        return Job(part, self._config, self._budget)

    def put_back(self, job: Job) -> None:
        """Leave a job to another worker."""
        self._back.appendleft(job)
