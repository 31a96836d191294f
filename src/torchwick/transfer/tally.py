"""What a load has cost so far."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Tally"]


@dataclass
class Tally:
    """Bytes, requests and connections of a load. Each worker counts in its own, so that no lock is needed."""

    bytes_read: int = 0
    requests: int = 0
    retries: int = 0
    connections: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.bytes_read + other.bytes_read,
            self.requests + other.requests,
            self.retries + other.retries,
            max(self.connections, other.connections),
        )
