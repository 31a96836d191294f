"""``torchwick demo``: real models out of a real S3 server, checked and timed beside boto3."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from torchwick.cli.failing import told

__all__ = ["demo"]


def demo(
    size_gb: Annotated[float, typer.Option(min=0.01, help="GB of the generated checkpoint.")] = 1.0,
) -> None:
    """Start an S3 server, put models there, load each, check every tensor, and time it beside boto3."""
    from torchwick.demo.run import run_demo

    with told(as_json=False):
        run_demo(Console(), size_gb=size_gb)
