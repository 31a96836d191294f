"""Keeps secrets out of what botocore logs while it works for torchwick, and out of tracebacks.

At the level DEBUG botocore writes requests with their signatures and session tokens, and STS's answers with
secret keys. A program that turns everything on to debug its own code would store them. What botocore logs for
anyone else in the process is left alone. A traceback that shows local variables, as error trackers collect
them, would show the same.
"""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["frameless", "redacted_logs", "without_passwords"]

_TELLING = (
    "auth",
    "client",
    "endpoint",
    "hooks",
    "httpsession",
    "parsers",
    "regions",
    "retryhandler",
    "utils",
)


class _Redaction(logging.Filter):
    """Replaces the text of records made by threads that are at work for torchwick."""

    def __init__(self) -> None:
        super().__init__()
        self.here = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        if getattr(self.here, "active", False) and record.levelno <= logging.DEBUG:
            record.msg, record.args = "(not shown: it may hold a signature or a token)", ()
        return True


_PASSWORD = re.compile(
    r"((?<!s3://)(?<=//)|(?<=endpoint: ))(?!user:password@)[^\s'\"`]+(?=@)|(?<=Failed to parse: )\S+"
)
"""All before the last @ of an address: a password may hold @ and /. So may a key, which is none."""


def without_passwords(text: str) -> str:
    """Return a text of others with "…" in the place of user names and passwords in addresses.

    Example:
        >>> without_passwords("cannot connect to http://me:p@ss@host:1")
        'cannot connect to http://…@host:1'
    """
    return _PASSWORD.sub("…", text)


_redaction = _Redaction()
for _name in _TELLING:
    logging.getLogger(f"botocore.{_name}").addFilter(_redaction)


@contextlib.contextmanager
def redacted_logs() -> Iterator[None]:
    """Leave out, on this thread, what botocore would log at the level DEBUG."""
    before = getattr(_redaction.here, "active", False)
    _redaction.here.active = True
    try:
        yield
    finally:
        _redaction.here.active = before


_Error = TypeVar("_Error", bound=BaseException)


def frameless(error: _Error) -> _Error:
    """Return the error without the frames that it, and whatever it was made from, came through."""
    found: list[BaseException] = [error]
    for each in found:
        each.__traceback__ = None
        found += [
            made_from
            for made_from in (each.__cause__, each.__context__)
            if made_from and made_from not in found
        ]
    return error
