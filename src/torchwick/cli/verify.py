"""``torchwick verify``: read every byte of a checkpoint, and tell whether it is what was stored."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from torchwick.cli.failing import told
from torchwick.cli.options import s3_options
from torchwick.cli.shown import shown
from torchwick.config import S3Config, TransferConfig
from torchwick.errors import FormatError
from torchwick.inspection import Verification, VerifiedObject
from torchwick.inspection import verify as look_at

__all__ = ["verify"]

_NOT_VERIFIED = 2  # exit status; 1 is the verdict
_MOST_SHOWN = 50  # tensors that are not finite


@s3_options
def verify(
    uri: Annotated[str, typer.Argument(help="s3://bucket/key, a directory, https://…, or a local path.")],
    *,
    sha256: Annotated[str | None, typer.Option(help="The SHA-256 that the object has to have.")] = None,
    finite: Annotated[bool, typer.Option("--finite", help="Look for NaN and Inf as well.")] = False,
    s3: S3Config,
    memory_limit: Annotated[str, typer.Option(help="Bytes held at once; 256 MiB if left out.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Read every byte of a checkpoint, and hold it against all that is known of it.

    The exit status is 1 if anything is wrong with it, 2 if it could not be read.
    """
    found: Verification | FormatError
    with told(as_json=as_json, s3=s3, status=_NOT_VERIFIED):
        try:
            found = look_at(
                uri,
                sha256=sha256,
                finite=finite,
                progress=sys.stderr.isatty(),
                s3=s3,
                transfer=TransferConfig(memory_limit=memory_limit),
            )
        except FormatError as error:
            found = error
    if isinstance(found, FormatError):  # what it should be is known, and it is not
        with told(as_json=as_json, s3=s3):
            raise found
    if as_json:
        json.dump(found.to_dict(), sys.stdout)
        sys.stdout.write("\n")
    else:
        _print(Console(), found)
    if found.verdict != "ok":
        raise typer.Exit(1)


def _print(console: Console, found: Verification) -> None:
    verdict = Text(found.verdict, "green" if found.verdict == "ok" else "bold red")
    heading = Text.assemble(
        shown(found.uri, "bold"), f" ({found.format}, {found.tensors} tensors): ", verdict
    )
    console.print(heading, soft_wrap=True)
    console.print(_objects(found))
    if found.not_finite:
        console.print(_not_finite(found))
    if found.not_finite == ():
        console.print(Text("All elements are finite."))
    if not found.complete:
        count = sum(not object_.checksums for object_ in found.objects)
        objects = "It was" if len(found.objects) == 1 else f"{count} of {len(found.objects)} objects were"
        console.print(Text(f"{objects} held against no checksum of all bytes.", "yellow"))
    console.print(Text(f"{found.bytes_read:,} bytes read in {found.requests} requests", style="dim"))


def _objects(found: Verification) -> Table:
    table = Table("object", "bytes", "held against", "found")
    table.columns[0].overflow = table.columns[3].overflow = "fold"
    table.columns[1].justify = "right"
    for object_ in found.objects:
        table.add_row(_name(found, object_), f"{object_.size:,}", _held_against(object_), _outcome(object_))
    return table


def _name(found: Verification, object_: VerifiedObject) -> Text:
    return shown(object_.uri.removeprefix(found.uri) or object_.uri.rpartition("/")[2])


def _held_against(object_: VerifiedObject) -> Text:
    held = [*object_.checksums, *(["its records' crc32"] if object_.records else [])]
    lines = [*([", ".join(held)] if held else []), *([object_.unverified] if object_.unverified else [])]
    return Text("\n").join(shown(line, "" if object_.checksums else "yellow") for line in lines)


def _outcome(object_: VerifiedObject) -> Text:
    if not object_.problems:
        return Text("ok", "green")
    return Text("\n").join(shown(problem, "red") for problem in object_.problems)


def _not_finite(found: Verification) -> Table:
    tensors = found.not_finite or ()
    table = Table("tensor", "dtype", "NaN", "+Inf", "-Inf")
    table.columns[0].overflow = "fold"
    for tensor in tensors[:_MOST_SHOWN]:
        counts = (f"{count:,}" for count in (tensor.nan, tensor.positive, tensor.negative))
        table.add_row(shown(tensor.name), tensor.dtype, *counts)
    if len(tensors) > _MOST_SHOWN:
        table.caption = f"and {len(tensors) - _MOST_SHOWN} more tensors"
    return table
