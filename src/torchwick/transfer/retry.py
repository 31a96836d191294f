"""When to try again, and how long to wait before."""

from __future__ import annotations

import http.client
import logging
import random
import socket
import ssl
from collections.abc import Callable

from torchwick.errors import BusyError, TransferError
from torchwick.uri import URI

__all__ = ["TRANSIENT", "Retry"]

_log = logging.getLogger("torchwick")

TRANSIENT = (OSError, http.client.HTTPException, BusyError)
"""What a retry may mend: the network's errors, answers that are not HTTP, and a store that is busy."""

_FIRST_WAIT = 0.1  # seconds; doubled by every failure
_LONGEST_WAIT = 5.0


class Retry:
    """Counts the failures of one read and waits between them, longer each time.

    Args:
        uri: what is read, for the message.
        most: attempts before it is final.
        wait: sleeps so many seconds, and returns True if the transfer was cancelled meanwhile.
    """

    def __init__(self, uri: URI, most: int, wait: Callable[[float], bool]) -> None:
        self._uri = uri
        self._most = most
        self._wait = wait
        self.failures = 0

    def failed(self, error: Exception, start: int, stop: int | None) -> None:
        """Return when it is time to try ``[start, stop)`` again.

        Raises:
            StoreError: another attempt would meet the same refusal.
            TransferError: this was the last attempt, or no attempt can help.
        """
        if isinstance(error, OSError) and hasattr(error, "retryable") and not error.retryable:
            raise error  # one of ours that is an OSError too, such as ObjectNotFoundError
        self.failures += 1
        if self.failures >= self._most or isinstance(error, ssl.SSLCertVerificationError):
            raise self._final(error, start, stop) from error
        seconds = self._seconds(error)
        # As text: a record that kept the error would keep its frames, and their views of the caller's memory.
        _log.info("%s: %s; attempt %d in %.1f s", self._uri, _describe(error), self.failures + 1, seconds)
        if self._wait(seconds):
            raise ConnectionAbortedError("the transfer was cancelled")

    def _seconds(self, error: Exception) -> float:
        asked = error.retry_after if isinstance(error, BusyError) else None
        longest = min(_FIRST_WAIT * 2**self.failures, _LONGEST_WAIT)
        # Jitter, so that many readers that failed together do not come back together.
        return max(asked or 0.0, random.uniform(longest / 2, longest))  # noqa: S311

    def _final(self, error: Exception, start: int, stop: int | None) -> TransferError:
        times = "once" if self.failures == 1 else f"{self.failures} times"
        return TransferError(
            f"could not be read, tried {times}: {_describe(error)}",
            uri=self._uri,
            hint=_hint(error),
            range=(start, stop),
            attempts=self.failures,
        )


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no byte came for as long as TransferConfig.timeout allows"
    return str(error) or type(error).__name__


def _hint(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "The host's name is unknown: check the endpoint, the region and the DNS."
    if isinstance(error, ssl.SSLCertVerificationError):
        return "The server's certificate is not trusted: set AWS_CA_BUNDLE to the authority that signed it."
    if isinstance(error, ConnectionRefusedError):
        return "Nothing listens there: check AWS_ENDPOINT_URL, its port, and that the server runs."
    if isinstance(error, BusyError):
        return "The store is overloaded: try later, or with fewer connections."
    return "Check the network between this machine and the store."
