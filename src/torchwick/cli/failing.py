"""How a command fails: the error's own sentences on standard error, and exit status 1."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator

import typer
from rich.console import Console
from rich.text import Text

from torchwick.errors import ObjectChangedError, ObjectNotFoundError, StoreError, TorchwickError

__all__ = ["told"]

_CLEAR = (ObjectChangedError, ObjectNotFoundError)
"""Refusals of the store's about which there is nothing more to find out."""


@contextlib.contextmanager
def told(*, as_json: bool) -> Iterator[None]:
    """Tell an error without a traceback: what it says is meant for people.

    A `ValueError` is about an option, a `RuntimeError` is torch's about a device that is not there.

    Args:
        as_json: write ``{"error": {"type", "message", "uri", "hint", "retryable"}}`` to standard output, for
            scripts that read their answer there.
    """
    try:
        yield
    except (TorchwickError, ValueError, RuntimeError) as error:
        if as_json:
            json.dump({"error": _facts(error)}, sys.stdout)
            sys.stdout.write("\n")
        else:
            name = Text(type(error).__name__, style="bold red")
            console = Console(stderr=True, soft_wrap=True)
            console.print(name, Text(str(error)))
            if isinstance(error, StoreError) and not isinstance(error, _CLEAR):
                console.print(Text(f"To find out more: torchwick doctor {_shown(error)}", style="dim"))
        raise typer.Exit(1) from error


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
