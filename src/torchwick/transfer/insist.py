"""One request that writes, asked again until it is answered or no attempt can help."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torchwick.config import TransferConfig
from torchwick.store import Writer
from torchwick.transfer.budget import Budget
from torchwick.transfer.persist import keep_on
from torchwick.transfer.retry import Retry
from torchwick.transfer.tally import Tally
from torchwick.uri import URI

__all__ = ["Insistent", "MakeWriter"]

MakeWriter = Callable[[], Writer]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Insistent:
    """Asks, and asks again wherever the network or the store failed.

    Attributes:
        make_writer: makes the writer.
        config: how often to try.
        budget: what all requests together may spend.
    """

    make_writer: MakeWriter
    config: TransferConfig
    budget: Budget

    def ask(
        self,
        send: Callable[[Writer], _T],
        uri: URI,
        tally: Tally,
        *,
        done: str = "written",
        most: int | None = None,
    ) -> _T:
        """Return what `send` returns.

        Args:
            send: sends one request over the writer it is given.
            uri: the object, for messages.
            tally: where requests and retries are counted.
            done: what could not be done, for messages.
            most: failures in a row that are final, where that is not `TransferConfig.max_attempts`.

        Raises:
            StoreError: it could not be done.
        """
        self.budget.begin()
        retry = Retry(uri, 0, most or self.config.max_attempts, self.budget, done)

        def attempt(writer: Writer) -> _T:
            tally.requests += 1
            return send(writer)

        return keep_on(
            attempt,
            self.make_writer(),
            retry,
            wanted=lambda: (0, None),
            budget=self.budget,
            tally=tally,
        )
