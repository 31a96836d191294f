"""When to try again, and how long to wait before."""

from __future__ import annotations

import http.client
import logging
import random
import re
import socket
import ssl
import time
from collections.abc import Callable

from torchwick.errors import BusyError, StoreError, TorchwickError, TransferError
from torchwick.transfer.budget import Budget
from torchwick.transfer.steady import TooSlowError
from torchwick.uri import URI

__all__ = ["TRANSIENT", "Retry"]

_log = logging.getLogger("torchwick")

TRANSIENT = (OSError, http.client.HTTPException, BusyError)
"""What a retry may mend: the network's errors, answers that are not HTTP, and a store that is busy."""

_FIRST_WAIT = 0.1  # seconds; doubled by every failure
_LONGEST_WAIT = 5.0
_WORTH_AN_ATTEMPT = 1 << 20  # bytes: what a connection brought before it broke, for its retry to be free


class Retry:
    """Counts the failures of one request in a row and waits between them, longer each time.

    Args:
        uri: what is read or written, for the message.
        start: where that begins.
        most: failures in a row, without a byte in between, that are final.
        budget: what the load as a whole may spend.
        done: what could not be done, for the message.
    """

    def __init__(self, uri: URI, start: int, most: int, budget: Budget, done: str = "read") -> None:
        self._uri = uri
        self._done = done
        self._position = start
        self._most = most
        self._budget = budget
        self.failures = 0

    def failed(self, error: Exception, start: int, stop: int | None, wait: Callable[[float], bool]) -> None:
        """Return when it is time to try ``[start, stop)`` again.

        Args:
            error: what went wrong.
            start: where the next attempt begins: beyond the last one's start if bytes came in between.
            stop: where it ends; None if that is not known.
            wait: sleeps so many seconds, or returns True as soon as there is nothing more to wait for.

        Raises:
            StoreError: another attempt would meet the same refusal.
            TransferError: the read or the load has used up what it may spend, or no attempt can help.
        """
        if isinstance(error, OSError) and hasattr(error, "retryable") and not error.retryable:
            raise error  # one of ours that is an OSError too, such as ObjectNotFoundError
        brought, self._position = start - self._position, start
        if brought and not isinstance(error, TooSlowError):
            self.failures = 0
        self.failures += 1
        if self.failures >= self._most or isinstance(error, ssl.SSLCertVerificationError):
            raise self._final(error, start, stop, _hint(error)) from error
        if brought < _WORTH_AN_ATTEMPT and not self._budget.take_retry():
            raise self._final(error, start, stop, _TOO_MANY) from error
        seconds = self._seconds(error)
        # As text: a record that kept the error would keep its frames, and their views of the caller's memory.
        _log.info("%s: %s; attempt %d in %.1f s", self._uri, _describe(error), self.failures + 1, seconds)
        if _asked(error) > self._budget.patience or not self._wait(seconds, wait):
            raise self._final(error, start, stop, _out_of_patience(error)) from error

    def _seconds(self, error: Exception) -> float:
        longest = min(_FIRST_WAIT * 2**self.failures, _LONGEST_WAIT)
        # Jitter, so that many readers that failed together do not come back together.
        return max(_asked(error), random.uniform(longest / 2, longest))  # noqa: S311

    def _wait(self, seconds: float, wait: Callable[[float], bool]) -> bool:
        """Wait, and tell whether the load may go on; bytes that others read meanwhile prolong it."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0 and (left := self._patience_left()) > 0:
            if wait(min(rest, left)):
                return True
        return self._patience_left() > 0

    def _patience_left(self) -> float:
        # A first failure never ends a load: a process that was stopped for an hour finds its connections
        # closed, and has to ask once more to know whether the store is silent.
        return self._budget.patience if self.failures == 1 else self._budget.silence_left()

    def _final(self, error: Exception, start: int, stop: int | None, hint: str) -> TransferError:
        times = "once" if self.failures == 1 else f"{self.failures} times"
        told = error if isinstance(error, StoreError) else StoreError("")
        return TransferError(
            f"could not be {self._done}, tried {times}: {_describe(error)}",
            uri=self._uri,
            hint=hint,
            range=(start, stop),
            attempts=self.failures,
            code=told.code,
            request_id=told.request_id,
            identity=told.identity,
        )


def _asked(error: Exception) -> float:
    """Return the seconds that the store asked to be left alone for."""
    return (error.retry_after or 0.0) if isinstance(error, BusyError) else 0.0


def _describe(error: Exception) -> str:
    if isinstance(error, TorchwickError):
        return error.message
    if isinstance(error, TimeoutError):
        return "no byte came for as long as TransferConfig.timeout allows"
    if isinstance(error, OSError) and error.strerror:
        return _NOISE.sub("", error.strerror)
    return str(error) or type(error).__name__


_NOISE = re.compile(r"\[SSL[^]]*\] |\.? \(_ssl\.c:\d+\)")  # where in OpenSSL's sources and Python's


_TOO_MANY = (
    "Too many requests of this load failed, though bytes came in between: check the network and the store, "
    "or raise TransferConfig.max_attempts."
)


def _out_of_patience(error: Exception) -> str:
    asked = _asked(error)
    why = (
        f"The store asked to be left alone for {asked:g} s" if asked else "No byte of the load came for long"
    )
    return f"{why}: try later, or raise TransferConfig.patience."


def _hint(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "The host's name is unknown: check the endpoint, the region and the DNS."
    if isinstance(error, ssl.SSLCertVerificationError):
        return _CERTIFICATE.get(error.verify_code, "Set AWS_CA_BUNDLE to the authority that signed it.")
    if isinstance(error, ConnectionRefusedError) and "the proxy" in str(error):
        return "No proxy listens there: check HTTP_PROXY, HTTPS_PROXY and NO_PROXY."
    if isinstance(error, ConnectionRefusedError):
        return "Nothing listens there: check AWS_ENDPOINT_URL, its port, and that the server runs."
    if isinstance(error, ssl.SSLError) and error.reason == "WRONG_VERSION_NUMBER":
        return "The server does not speak TLS there: write http:// in the endpoint, or use its TLS port."
    if isinstance(error, BusyError):
        return "The store is overloaded: try later, or with fewer connections."
    if isinstance(error, TorchwickError) and error.hint:
        return error.hint
    return "Check the network between this machine and the store."


_CERTIFICATE = {  # by OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH, _IP_ADDRESS_MISMATCH and _CERT_HAS_EXPIRED
    62: "The certificate is another host's: check the endpoint.",
    64: "The certificate is another host's: check the endpoint.",
    10: "The certificate has expired, or this machine's clock is wrong.",
}
