"""``torchwick save``: upload a checkpoint of this machine, as it is."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchwick.cli.failing import told
from torchwick.cli.options import s3_options
from torchwick.config import PutOptions, S3Config, TransferConfig
from torchwick.report import SaveReport
from torchwick.saving.upload import upload

__all__ = ["save"]

_MOST_NAMED = 4  # of many files in one row


@s3_options
def save(
    local: Annotated[str, typer.Argument(help="A checkpoint of any format, or a directory.")],
    uri: Annotated[str, typer.Argument(help="s3://bucket/key, or s3://bucket/directory/.")],
    *,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = True,
    delete_replaced: Annotated[
        bool,
        typer.Option("--delete-replaced", help="Delete the other files of the model that is replaced."),
    ] = False,
    storage_class: Annotated[str | None, typer.Option(help="Such as INTELLIGENT_TIERING.")] = None,
    sse: Annotated[
        Literal["AES256", "aws:kms", "aws:kms:dsse"] | None, typer.Option(help="How S3 encrypts it.")
    ] = None,
    kms_key_id: Annotated[str | None, typer.Option(help="The KMS key, its ARN or its alias.")] = None,
    s3: S3Config,
    connections: Annotated[
        int | None, typer.Option(min=1, help="Connections at once; adapts if left out.")
    ] = None,
    memory_limit: Annotated[str, typer.Option(help="Bytes held at once, such as 2GB.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Upload a checkpoint byte for byte over many connections, and show what S3 confirmed."""
    with told(as_json=as_json, s3=s3):
        report = upload(
            local,
            uri,
            overwrite=overwrite,
            delete_replaced=delete_replaced,
            options=PutOptions(
                storage_class=storage_class, server_side_encryption=sse, kms_key_id=kms_key_id
            ),
            progress=sys.stderr.isatty(),
            s3=s3,
            transfer=TransferConfig(connections=connections or "auto", memory_limit=memory_limit),
        )
    if as_json:
        json.dump(report.to_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        Console().print(_table(report))


def _table(report: SaveReport) -> Table:
    table = Table(show_header=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    rows = {
        "files": _few([f"{file.uri} ({file.size:,} bytes)" for file in report.files]),
        "format": report.format,
        "deleted": _few([*report.deleted]),
        "time": f"{report.seconds:.2f} s, {report.size / report.seconds / 1e9:.2f} GB/s",
        "requests": f"{report.requests}, of which {report.retries} were retries",
        "connections": f"{report.connections}",
        "verified": report.verified or "no",
    }
    for name, text in rows.items():
        if text:
            table.add_row(name, Text(text))
    return table


def _few(texts: list[str]) -> str:
    more = len(texts) - _MOST_NAMED
    return "\n".join([*texts[:_MOST_NAMED], *([f"and {more} more"] if more > 0 else [])])
