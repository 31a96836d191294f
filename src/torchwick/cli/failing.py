"""How a command fails: the error's own sentences on standard error, and an exit status."""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields

import typer

from torchwick.cli.options import KEY_FILE, as_options, option_of
from torchwick.config import S3Config
from torchwick.errors import (
    ObjectChangedError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreError,
    TorchwickError,
)

__all__ = ["told"]

_CLEAR = (ObjectChangedError, ObjectExistsError, ObjectNotFoundError)
"""Refusals of the store's about which there is nothing more to find out."""

_OPTIONS = {
    **{field.name: option_of(field.name) for field in fields(S3Config)},
    "sse_customer_key": KEY_FILE,
    "weights_only": "--no-weights-only",
    "verify": "without --verify",
    "sha256": "--sha256",
    "memory_limit": "--memory-limit",
    "overwrite": "--overwrite",
    "delete_replaced": "--delete-replaced",
    "keys": "--keys",
    "rename": "--rename",
}
_NAMED = re.compile(r"Config\.(\w+)|(?:Config\(|(?<!\S))(\w+)=")  # not region=… in a key


@contextlib.contextmanager
def told(*, as_json: bool, s3: S3Config | None = None, status: int = 1) -> Iterator[None]:
    """Tell an error without a traceback: what it says is meant for people.

    A `ValueError` is about an option, a `RuntimeError` is torch's about a device that is not there.

    Args:
        as_json: write ``{"error": {"type", "message", "uri", "hint", "retryable"}}`` to standard output, for
            scripts that read their answer there.
        s3: what the command was told about S3: a diagnosis has to be told the same.
        status: the exit status.
    """
    try:
        yield
    except (TorchwickError, ValueError, RuntimeError) as error:
        if as_json:
            json.dump({"error": _facts(error)}, sys.stdout)
            sys.stdout.write("\n")
        else:
            _print(error, s3 or S3Config())
        raise typer.Exit(status) from error


def _print(error: Exception, s3: S3Config) -> None:
    from rich.console import Console
    from rich.text import Text

    name = Text(type(error).__name__, style="bold red")
    console = Console(stderr=True, soft_wrap=True)
    console.print(name, Text(f"{error}{_as_options(error)}"))
    if isinstance(error, StoreError) and not _is_clear(error):
        console.print(Text(f"To find out more: {_doctor(error, s3)}", style="dim"))


def _is_clear(error: StoreError) -> bool:
    """Whether there is nothing to find out: nor is there where this machine's own system refused."""
    return isinstance(error, _CLEAR) or error.code in errno.errorcode.values()


def _as_options(error: Exception) -> str:
    """Return the names that options have here, where an error's hint names them as Python does."""
    if not isinstance(error, TorchwickError):
        return ""
    named = (attribute or argument for attribute, argument in _NAMED.findall(error.hint or ""))
    options = dict.fromkeys(_OPTIONS[name] for name in named if name in _OPTIONS)
    return f" (On the command line: {', '.join(options)}.)" if options else ""


def _doctor(error: StoreError, s3: S3Config) -> str:
    return " ".join(["torchwick doctor", _shown(error), *as_options(s3)])


def _shown(error: StoreError) -> str:
    """Return the URI as a shell takes it; only its name where it was too secret to be kept."""
    uri = error.uri
    return "URI" if uri is None or uri.endswith("?…") else shlex.quote(uri)


def _facts(error: Exception) -> dict[str, object]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "uri": getattr(error, "uri", None),
        "hint": getattr(error, "hint", None),
        "retryable": getattr(error, "retryable", False),
    }
