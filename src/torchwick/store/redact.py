"""Keeps what botocore logs for debugging out of the logs while it works for torchwick.

At the level DEBUG botocore writes requests with their signatures and session tokens, and STS's answers with
secret keys. A program that turns everything on to debug its own code would store them. What botocore logs for
anyone else in the process is left alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator

__all__ = ["redacted_logs"]

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
