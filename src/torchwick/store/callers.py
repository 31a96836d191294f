"""Who asks: found once for all threads, kept while S3 takes it, and looked for afresh when it does not.

botocore would let each thread look for itself, one after the other: with a metadata service that does not
answer, 16 connections took 15 s to fail. Here one looks, the others wait for it and share what comes of it, a
failure as well; and what fails in this step is known to be about credentials.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from botocore.parsers import ResponseParserError

from torchwick.config import S3Config
from torchwick.errors import CredentialsError, StoreError, TorchwickError
from torchwick.store.botocore_errors import endpoint_refused, from_botocore, not_sts
from torchwick.store.collector import collector_paused
from torchwick.store.identity import asked_as, role_of, searched
from torchwick.store.line import Line
from torchwick.store.redact import redacted_logs
from torchwick.store.s3_client import make_client, make_session
from torchwick.store.s3_errors import Refusal
from torchwick.store.s3_exchange import Signed
from torchwick.uri import URI

__all__ = ["Caller", "Callers"]


@dataclass
class Caller:
    """One who asks, and what was signed in their name.

    Attributes:
        session: botocore's.
        client: its client of S3.
        asked_as: who that is, in words.
        signed: requests that may be sent again, by their object.
    """

    session: botocore.session.Session
    client: Any
    asked_as: str = ""
    signed: dict[URI, Signed] = field(default_factory=dict, repr=False)

    def remember(self, uri: URI, signed: Signed) -> None:
        """Keep a signed request, and let go of those that are too old."""
        for known, old in list(self.signed.items()):
            if not old.fresh:
                self.signed.pop(known, None)
        self.signed[uri] = signed


class Callers:
    """The callers of one store, one after the other.

    Args:
        config: who is to ask, and which S3.
        timeout: seconds without an answer after which a service counts as out of reach.
        prepare: called with each client before it is used.
    """

    def __init__(self, config: S3Config, timeout: float, prepare: Callable[[Any], None]) -> None:
        self._config = config
        self._timeout = timeout
        self._prepare = prepare
        self._lock = threading.Lock()
        self._session: botocore.session.Session | None = None
        self._asked_as = ""
        self._failure: tuple[float, TorchwickError] | None = None
        self._stale: Caller | None = None
        self.known: Caller | None = None
        """Who asked last."""

    def session(self) -> botocore.session.Session:
        """Return the session of botocore, which knows settings; credentials it need not have found.

        Raises:
            CredentialsError: the AWS configuration cannot be read.
        """
        with self._lock:
            failure = self._read_settings()
            session = self._session
        if session is None or failure is not None:
            raise failure or AssertionError("a session is there, or a failure")
        return session

    def fresh(self, line: Line | None = None) -> Caller:
        """Return the caller, with credentials that are found and not about to expire.

        Args:
            line: what they are for; a transfer that was cancelled while it waited needs none.

        Raises:
            CredentialsError: none can be had.
            StoreError: no client can be made of the settings, or a service that gives credentials is busy.
            ConnectionAbortedError: the transfer was cancelled.
        """
        began = time.monotonic()
        with self._lock:
            if line is not None:
                line.raise_if_aborted()
            failure = self._failure[1] if self._failure is not None and began < self._failure[0] else None
            if failure is None:
                self._let_go_if_stale()
                failure = self._read_settings() or self._find() or self._make_client()
                self._failure = None if failure is None else (time.monotonic(), failure)
            caller = self.known
            if caller is not None:
                caller.asked_as = self._asked_as
        if failure is not None or caller is None:
            raise copy.copy(failure) if failure is not None else AssertionError("a caller, or a failure")
        return caller

    def replace(self, stale: Caller) -> None:
        """Look for another caller next time, unless another thread has found one already.

        Without the lock: whoever waited for it here would wait for one that looks, and miss what came of it.
        """
        self._stale = stale

    def _let_go_if_stale(self) -> None:
        if self.known is not None and self.known is self._stale:
            self.known = self._session = None

    # Each step returns its failure: raised within a handler it would carry botocore's error, and with it
    # frames whose locals hold keys.

    @redacted_logs()
    def _read_settings(self) -> TorchwickError | None:
        if self._session is not None:
            return None
        try:
            self._session = make_session(self._config, self._timeout)
            self._session.get_config_variable("region")  # which reads the files
        except BotoCoreError as error:
            self._session = None
            return from_botocore(error)
        return None

    @redacted_logs()
    def _find(self) -> TorchwickError | None:
        session: Any = self._session
        try:
            found = asked_as(session, self._config)
        except ClientError as error:
            failure: TorchwickError = Refusal(error, None, role_of(self._config)).explained()
        except NoCredentialsError as error:
            failure = from_botocore(error, searched(session, self._config))
        except BotoCoreError as error:
            failure = from_botocore(error)
        except ResponseParserError:
            failure = not_sts()
        except (OSError, ValueError, KeyError) as error:
            hint = "Check the file, or the program, that the AWS configuration names for them."
            failure = CredentialsError(f"the AWS credentials cannot be read: {_said(error)}", hint=hint)
        else:
            self._asked_as = found
            return None
        # The user may have logged in, or mended the files, by the next time.
        self.known = self._session = None
        return failure

    @redacted_logs()
    def _make_client(self) -> TorchwickError | None:
        if self.known is not None:
            return None
        session: Any = self._session
        try:
            with collector_paused():
                client = make_client(session, self._config)
            self._prepare(client)
        except BotoCoreError as error:
            return from_botocore(error)
        except StoreError as error:
            return error
        except ValueError as error:  # how botocore refuses an endpoint
            return endpoint_refused(error)
        self.known = Caller(session, client)
        return None


def _said(error: Exception) -> str:
    """Return what went wrong, without what was read: it may hold half a key."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, KeyError | json.JSONDecodeError | UnicodeError):
        return "they are not in the form that AWS defines"
    return str(error)
