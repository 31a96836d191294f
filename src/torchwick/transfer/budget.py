"""What a whole load may spend on failures, whoever of its readers meets them."""

from __future__ import annotations

import threading
import time

from torchwick.config import TransferConfig

__all__ = ["Budget"]

_EQUIVALENT = 32  # ranges that may each fail as often as one may: a burst that every connection meets


class Budget:
    """Retries and silence that are left to one load; shared by its workers and its small reads.

    A retry takes from a quota, and a range that arrived gives one back. So a load of any length goes through
    while fewer than half of its requests fail, and a store that sends a few bytes and then fails, for ever,
    is given up though no range ever failed twice without a byte in between.

    Args:
        config: `TransferConfig.max_attempts`, from which the quota follows, and `TransferConfig.patience`.
    """

    def __init__(self, config: TransferConfig) -> None:
        self.patience = config.patience
        self._most = self._retries = _EQUIVALENT * config.max_attempts
        self._lock = threading.Lock()
        self._last_byte = time.monotonic()

    def begin(self) -> None:
        """Start the clock of silence: what the load did before it asked for bytes is not the store's."""
        self._last_byte = time.monotonic()

    def byte_arrived(self, now: float) -> None:
        """Note that bytes arrived `now`, by the monotonic clock."""
        self._last_byte = now

    def silence_left(self) -> float:
        """Return the seconds that may still pass without a byte; none are left from 0 down."""
        return self._last_byte + self.patience - time.monotonic()

    def take_retry(self) -> bool:
        """Take one retry from the quota, and tell whether there was one."""
        with self._lock:
            self._retries -= 1
            return self._retries >= 0

    def range_arrived(self) -> None:
        """Give one retry back."""
        with self._lock:
            self._retries = min(max(0, self._retries) + 1, self._most)
