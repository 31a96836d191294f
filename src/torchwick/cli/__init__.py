"""The command line: one module a command, over the public functions."""

from __future__ import annotations

from typing import Annotated

import typer

import torchwick
from torchwick.cli.convert import convert
from torchwick.cli.demo import demo
from torchwick.cli.diff import diff
from torchwick.cli.doctor import doctor
from torchwick.cli.load import load
from torchwick.cli.scan import scan
from torchwick.cli.verify import verify

__all__ = ["app"]

app = typer.Typer(
    help="Load PyTorch models straight from S3.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold requests, and requests hold signatures
)
app.command()(load)
app.command()(doctor)
app.command()(scan)
app.command()(verify)
app.command()(diff)
app.command()(convert)
app.command()(demo)


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
    """Load PyTorch models straight from S3."""
