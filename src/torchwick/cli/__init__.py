"""The command line: one module a command, over the public functions.

A module is imported when its command is called: none waits for what only another needs.
"""

from __future__ import annotations

import atexit
import gc
import importlib
from functools import cache
from typing import Annotated, Any

import typer
from typer.main import get_command

import torchwick
from torchwick.cli.plain import PlainCommand, PlainGroup

__all__ = ["app", "main"]

_OBJECTS = 200_000  # made between two collections; importing botocore makes some hundred thousand
_COMMANDS = ("load", "inspect", "doctor", "scan", "verify", "diff", "save", "convert", "demo")
"""In the order of the help; each is a function in the module of its name."""


class _Commands(PlainGroup):
    """Finds a command's function when the command is called, or its help asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [*_COMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        return _command(cmd_name) if cmd_name in _COMMANDS else None


@cache
def _command(name: str) -> Any:
    function = getattr(importlib.import_module(f"torchwick.cli.{name}"), name)
    alone = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
    alone.command(name, cls=PlainCommand)(function)
    return get_command(alone)


app = typer.Typer(
    cls=_Commands,
    help="Load PyTorch models straight from S3, and save them to it.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold requests, and requests hold signatures
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torchwick {torchwick.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Load PyTorch models straight from S3, and save them to it."""


def main() -> None:
    """Run the command line in a process that does nothing else.

    Its objects are modules, and live as long as it does. Python would look through all of them again and
    again while they are made, and twice when it ends: two fifths of the time of a short command.
    """
    gc.set_threshold(_OBJECTS)
    atexit.register(gc.freeze)
    app(prog_name="torchwick")
