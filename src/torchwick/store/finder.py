"""Finds credentials, or renews them, once for all threads that wait: a failure is shared as well."""

from __future__ import annotations

import copy
import json
import threading
import time

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from torchwick.config import S3Config
from torchwick.errors import CredentialsError
from torchwick.store.identity import asked_as
from torchwick.store.line import Line

__all__ = ["CredentialFinder"]


class CredentialFinder:
    """A step of its own before a request is signed, so that what fails here is known to be about credentials.

    botocore would let each thread try for itself, one after the other: with a metadata service that does not
    answer, 16 connections took 15 s to fail.

    Args:
        config: who asks.
    """

    def __init__(self, config: S3Config) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._failure: tuple[float, Exception] | None = None

    def find(self, session: botocore.session.Session, line: Line, since: float) -> str:
        """Have the session's credentials found and fresh, and return whose they are, in words.

        Args:
            session: botocore's.
            line: what they are for; a transfer that was cancelled while it waited needs none.
            since: when the transfer began (`time.monotonic`); it shares any failure that came later.

        Raises:
            CredentialsError: a file or a program that should give them is missing, or gives something else.
            BotoCoreError: whatever botocore makes of its failure.
            ClientError: a service that gives credentials refused.
            ConnectionAbortedError: the transfer was cancelled.
        """
        with self._lock:
            line.raise_if_aborted()
            if self._failure is not None and since < self._failure[0]:
                raise copy.copy(self._failure[1])
            try:
                return asked_as(session, self._config)
            except (BotoCoreError, ClientError) as error:
                self._fail(error)
                raise
            except (OSError, ValueError, KeyError) as error:
                hint = "Check the file, or the program, that the AWS configuration names for them."
                raise self._fail(
                    CredentialsError(f"the AWS credentials cannot be read: {_said(error)}", hint=hint)
                ) from None

    def _fail(self, error: Exception) -> Exception:
        self._failure = (time.monotonic(), error)
        return error


def _said(error: Exception) -> str:
    """Return what went wrong, without what was read: it may hold half a key."""
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, KeyError | json.JSONDecodeError | UnicodeError):
        return "they are not in the form that AWS defines"
    return str(error)
