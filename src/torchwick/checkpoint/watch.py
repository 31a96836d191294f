"""Who sees the bytes of an object go by in a stream, and what is read besides so that all of it is seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchwick.transfer import NO_WITNESS, Witness

__all__ = ["Watch", "Watched"]


@dataclass(frozen=True)
class Watch:
    """The watch over one object; by default no one sees anything.

    Attributes:
        witness: sees every part.
        besides: half-open ranges that no tensor wants, and the witness does.
        stops: offsets that no part may reach across.
        finish: called when all has arrived: raises `IntegrityError` if it is not what it has to be.
    """

    witness: Witness = NO_WITNESS
    besides: Sequence[tuple[int, int]] = ()
    stops: Sequence[int] = ()
    finish: Callable[[], None] = lambda: None


class Watched:
    """A witness that tells another one as well.

    Args:
        sees: sums the bytes.
        waits: only wants to know when they are there.
    """

    def __init__(self, sees: Witness, waits: Witness) -> None:
        self.update = sees.update
        self._both = (sees, waits)

    def arrived(self, start: int, stop: int, value: int) -> None:
        """Tell both of a part that is there."""
        for witness in self._both:
            witness.arrived(start, stop, value)
